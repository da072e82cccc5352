from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from types import SimpleNamespace

import pytest
from airflow.sdk.exceptions import AirflowFailException

from include.announcements import Announcements
from include.release.candidates import AnnouncedCandidate, is_release_of
from include.specs import spec_class
from operators.release import planning as releases
from tests.operators.airflow_runs import asset_context
from tests.operators.conftest import TOKEN

PARAMS = {"recipe": "demo/0.8M_lora_cpu", "version": "", "drill": "none", "overrides": {}, "refresh": []}


@pytest.fixture
def registered(store, commit):
    """What `register` leaves; returns the event that it sends."""

    def make(version: str, *, model: str = "kubectl", recipe: str = "demo/0.8M_sft_cpu", minute: int = 0):
        name = f"register-{model}-{version}"
        commit(
            name,
            {"candidate.json": json.dumps({"model": model, "version": version})},
            config={"model": model, "recipe": recipe, "run_id": "r"},
        )
        return SimpleNamespace(
            extra={"artifact": store.uri(name), "metrics": {}},
            source_run_id=f"arrival__{version}",
            timestamp=datetime(2026, 1, 2, 3, minute, tzinfo=UTC),
        )

    return make


def context(**params):
    return {"params": {**PARAMS, **params}}


@pytest.fixture
def announced(platform, airflow_runs):
    """Give events to a run of `candidates`; returns the runs of `release` that it started."""

    def start(*events, later=None):
        started = releases.start_releases(asset_context(*events, later=later))
        return [{"run_id": run, "conf": airflow_runs.started["release", run]} for run in started]

    return start


def test_the_form_names_recipe_version_and_overrides():
    plan = releases.planned_release(context(version="7", overrides={"canary.steps": [0.3], "engine.rows": 64}))
    assert plan["candidate"] == {"job": "candidate", "config": {"model": "kubectl", "version": "7"}}
    assert plan["canary"]["steps"] == [0.3]
    assert plan["engine"]["job"] == "engine" and plan["engine"]["config"]["rows"] == 64
    assert releases.planned_release(context())["candidate"]["config"]["version"] is None
    assert json.loads(json.dumps(plan)) == plan


def test_a_registered_candidate_brings_its_own_version_and_recipe(registered, announced):
    [run] = announced(registered("3", recipe="own/0.8M_lora_cpu", model="own-data"))
    assert run["conf"] == {"recipe": "own/0.8M_lora_cpu", "version": "3"}
    assert re.fullmatch(r"candidate__own-data-v3__[0-9a-f]{8}", run["run_id"])
    assert is_release_of(run["run_id"], "arrival__3") and not is_release_of(run["run_id"], "arrival__4")
    plan = releases.planned_release(context(**run["conf"]))
    assert plan["candidate"]["config"] == {"model": "own-data", "version": "3"}
    assert plan["engine"]["config"]["max_tokens"] == 256


def test_each_candidate_has_one_release_however_airflow_delivers_its_events(registered, announced):
    events = [
        registered("10", minute=1),
        registered("9", minute=2),
        registered("4", model="own-data", recipe="own/0.8M_lora_cpu"),
    ]
    # The last two wait in Airflow for the next event; one is doubled.
    runs = announced(events[2], later=[events[2], events[0], events[1], events[0]])
    assert sorted(run["run_id"].rpartition("__")[0] for run in runs) == [
        "candidate__kubectl-v10",
        "candidate__kubectl-v9",
        "candidate__own-data-v4",
    ]
    assert announced(*events) == []


def test_a_candidate_that_is_written_down_is_released_without_its_event(registered, announced, store):
    event = registered("3")
    candidate = AnnouncedCandidate(artifact=event.extra["artifact"], source_run=event.source_run_id)
    Announcements(store, AnnouncedCandidate).add(candidate)
    [run] = announced()
    assert run["conf"]["version"] == "3" and is_release_of(run["run_id"], "arrival__3")
    assert announced(event) == []


def test_a_candidate_that_is_registered_again_by_its_run_is_not_released_again(
    registered, announced, airflow_runs, store, commit
):
    """A task that is cleared registers the same version, in a record of another name."""
    event = registered("3")
    announced(event)
    airflow_runs.started.clear()
    files = {"candidate.json": json.dumps({"model": "kubectl", "version": "3"})}
    commit("register-again", files, config={"model": "kubectl", "recipe": "demo/0.8M_sft_cpu", "run_id": "r"})
    event.extra = {"artifact": store.uri("register-again"), "metrics": {}}
    assert announced(event) == []


def test_a_model_that_an_override_named_is_released_under_that_name(registered, announced):
    [run] = announced(registered("3", model="another"))
    assert releases.planned_release(context(**run["conf"]))["candidate"]["config"]["model"] == "another"


def test_a_registration_that_is_gone_keeps_none_of_the_others(registered, announced, airflow_runs, store):
    announcements = Announcements(store, AnnouncedCandidate)
    announcements.add(AnnouncedCandidate(artifact=store.uri("register-0")))
    with pytest.raises(
        AirflowFailException, match="register-0 does not exist.*lies in .*/announced/candidate/refused/"
    ):
        announced(registered("1"))
    assert [conf["version"] for conf in airflow_runs.started.values()] == ["1"]
    assert announced() == []


@pytest.mark.parametrize("extra", [{}, {"artifact": None}, {"artifact": 1}])
def test_an_event_that_names_no_candidate_says_so(registered, announced, airflow_runs, extra):
    empty = registered("2")
    empty.extra = extra
    with pytest.raises(AirflowFailException, match="it names no candidate"):
        announced(empty, later=[empty, registered("1")])
    assert [conf["version"] for conf in airflow_runs.started.values()] == ["1"]


def test_an_event_of_another_artifact_says_so(registered, announced, commit, store):
    commit("curate-1", {"candidate.json": "[]"})
    event = registered("2")
    event.extra = {"artifact": store.uri("curate-1")}
    with pytest.raises(AirflowFailException, match="curate-1 is no registration of a candidate"):
        announced(event)


def test_an_unknown_key_ends_the_run_at_its_first_task():
    with pytest.raises(AirflowFailException, match=r"'canary\.stepz': did you mean 'steps'"):
        releases.planned_release(context(overrides={"canary.stepz": [0.1]}))


def test_the_engines_inputs_come_from_the_record(store, commit):
    record = {
        "model": "kubectl",
        "version": "2",
        "champion_version": "1",
        "recipe": "r",
        "inputs": {
            name: {"uri": f"file:///s/{name}", "digest": "0"} for name in ("merged", "curated", "evaluation", "x")
        },
    }
    commit("candidate-1", {"candidate.json": json.dumps(record)})
    assert releases.release_inputs(store.uri("candidate-1")) == {
        "model": "kubectl",
        "version": "2",
        "champion_version": "1",
        "merged": "file:///s/merged",
        "curated": "file:///s/curated",
        "evaluation": "file:///s/evaluation",
    }


def test_the_job_that_moves_the_alias_asks_the_platforms_controller_itself(platform):
    section = releases.promotion("kubectl")
    config = spec_class(section["job"]).model_fields["config"].annotation.model_validate(section["config"])
    assert (config.controller_url, config.token_file) == (
        platform.serving.controller_url,
        platform.serving.token_file,
    )
    assert TOKEN not in json.dumps(section)
