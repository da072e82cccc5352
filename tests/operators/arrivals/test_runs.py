from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest
from airflow.sdk.exceptions import AirflowException, AirflowFailException

from include.artifacts.store import Store
from include.platforms import load_platform
from operators.arrivals import arrival
from operators.arrivals.arrival import Arrival, arrivals_of_platform
from operators.arrivals.runs import start_customizations
from tests.operators.airflow_runs import Runs, asset_context

RECIPE = "demo/0.8M_lora_cpu"
NOW = datetime(2026, 1, 2, tzinfo=UTC)


@pytest.fixture(autouse=True)
def own_store(store, monkeypatch):
    platform = load_platform("laptop").model_copy(update={"store": store.root})
    monkeypatch.setattr(arrival, "current_platform", lambda: platform)


def arrived(number: int, recipe: str = RECIPE) -> Arrival:
    return Arrival(source=f"/in/{number}.jsonl", digest=f"{number:064x}"[::-1], bytes=number, recipe=recipe)


def event(arrival: Arrival, seconds: float = 0, **without) -> SimpleNamespace:
    payload = {key: value for key, value in arrival.model_dump().items() if key not in without}
    return SimpleNamespace(extra={"payload": payload}, timestamp=NOW + timedelta(seconds=seconds), source_run_id=None)


def confs(runs: Runs) -> list[dict]:
    return sorted(runs.started.values(), key=lambda conf: conf["data"])


def test_a_run_is_named_by_digest_and_recipe_and_takes_the_file_as_it_is_called(airflow_runs):
    hostile = Arrival(source="/in/{{ 7 * 7 }} $(touch x).jsonl", digest="a" * 64, bytes=1, recipe=RECIPE)
    arrivals_of_platform().add(hostile)
    [run_id] = start_customizations(asset_context())
    assert re.fullmatch(r"arrival__a{16}__[0-9a-f]{8}", run_id)
    assert airflow_runs.started == {
        ("customize", run_id): {"data": hostile.source, "recipe": RECIPE, "digest": "a" * 64}
    }


@pytest.mark.parametrize("count", [1, 5, 50])
def test_one_event_starts_all_that_have_arrived(airflow_runs, count):
    announced = [arrived(number) for number in range(count)]
    for one in announced:
        arrivals_of_platform().add(one)
    # Airflow gives the run the first event; the others wait for the next.
    start_customizations(asset_context(event(announced[0])))
    assert len(airflow_runs.started) == count
    assert arrivals_of_platform().pending() == []
    assert start_customizations(asset_context(event(announced[-1]))) == []
    assert airflow_runs.asked == count


@pytest.mark.parametrize("count", [1, 5, 50])
def test_events_that_nobody_wrote_down_start_their_runs_too(airflow_runs, count):
    """Version 0.1 sent them, without a recipe; those after the first one wait in Airflow for the next event."""
    events = [event(arrived(number), number / 1000, recipe=True) for number in range(count)]
    start_customizations(asset_context(events[0], later=[*events[1:], events[0]]))
    assert [conf["data"] for conf in confs(airflow_runs)] == sorted(f"/in/{number}.jsonl" for number in range(count))
    assert {conf["recipe"] for conf in confs(airflow_runs)} == {RECIPE}


def test_the_clock_starts_what_no_event_told(airflow_runs):
    arrivals_of_platform().add(arrived(1))
    assert len(start_customizations(asset_context())) == 1
    assert start_customizations(asset_context()) == []


def test_the_same_data_set_is_started_once_with_each_recipe(airflow_runs):
    for recipe in (RECIPE, "own/0.8M_lora_cpu", RECIPE):
        arrivals_of_platform().add(arrived(1, recipe))
        start_customizations(asset_context())
    assert [conf["recipe"] for conf in airflow_runs.started.values()] == [RECIPE, "own/0.8M_lora_cpu"]


def test_a_run_that_airflow_has_forgotten_is_not_started_again(airflow_runs):
    """After `airflow db clean`, or a deletion in the web UI."""
    arrivals_of_platform().add(arrived(1))
    start_customizations(asset_context())
    airflow_runs.started.clear()
    arrivals_of_platform().add(arrived(1))
    assert start_customizations(asset_context(event(arrived(1)))) == []
    assert airflow_runs.started == {}
    assert arrivals_of_platform().pending() == []


STEPS = ["add", "read", "was_started", "start_run", "note_start", "settle"]


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("step", STEPS)
def test_a_crash_at_any_step_leaves_exactly_one_run(airflow_runs, monkeypatch, step, after):
    from include.announcements import Announcements
    from operators import announced

    class Crash(BaseException):
        pass

    where = announced if step == "start_run" else Announcements
    real = getattr(where, step)

    def crash(*arguments, **more):
        if after:
            real(*arguments, **more)
        raise Crash

    told = event(arrived(1))
    with monkeypatch.context() as patch:
        patch.setattr(where, step, crash)
        with pytest.raises(Crash):
            start_customizations(asset_context(told))
    start_customizations(asset_context(told))
    assert len(airflow_runs.started) == 1
    assert arrivals_of_platform().pending() == []
    airflow_runs.started.clear()
    start_customizations(asset_context(told))
    assert airflow_runs.started == {}


def test_a_start_that_airflow_refuses_keeps_none_of_the_others_and_is_tried_again(airflow_runs):
    for number in range(3):
        arrivals_of_platform().add(arrived(number))
    refused = arrived(1).run
    airflow_runs.refuses[refused.run_id] = "Dag with dag_id 'customize' has import errors and cannot be triggered"
    with pytest.raises(AirflowException, match=f"the run {refused.run_id} of customize was not started: Dag with") as e:
        start_customizations(asset_context())
    assert str(e.value).startswith(f"{arrivals_of_platform().place(arrived(1).key)} starts no run now: ")
    assert not isinstance(e.value, AirflowFailException)
    assert len(airflow_runs.started) == 2
    airflow_runs.refuses.clear()
    assert start_customizations(asset_context()) == [refused.run_id]


def test_one_that_is_damaged_is_set_aside_and_keeps_none_of_the_others(airflow_runs, store):
    store.create("announced/arrived_datasets/pending/0.json", b"{}")
    arrivals_of_platform().add(arrived(1))
    aside = f"{store.root}/announced/arrived_datasets/refused/0.json"
    with pytest.raises(
        AirflowFailException, match=rf"0\.json is damaged: source.*lies in {aside}: correct it and move"
    ):
        start_customizations(asset_context())
    assert len(airflow_runs.started) == 1
    assert start_customizations(asset_context()) == []


def test_an_event_that_announces_nothing_keeps_none_of_the_others(airflow_runs):
    empty = SimpleNamespace(extra={}, timestamp=NOW, source_run_id=None)
    with pytest.raises(AirflowFailException, match="its payload is no data set that has arrived"):
        start_customizations(asset_context(empty, later=[empty, event(arrived(1))]))
    assert len(airflow_runs.started) == 1


def test_a_store_that_is_away_is_tried_again(airflow_runs, monkeypatch, tmp_path):
    away = Store(f"file://{tmp_path}/away", existing=True)
    monkeypatch.setattr(arrival, "platform_store", lambda _: away)
    with pytest.raises(AirflowException, match="is not there"):
        start_customizations(asset_context())
