from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from types import SimpleNamespace

import pytest
from airflow.sdk.exceptions import AirflowFailException

from include import recipes
from include.announcements import Announcements
from include.recipes import resolve
from include.release.candidates import AnnouncedCandidate, is_release_of
from include.specs import spec_class
from operators.release import planning as releases
from tests.operators.airflow_runs import asset_context
from tests.operators.conftest import TOKEN

PARAMS = {"model": "kubectl", "version": "", "drill": "none", "overrides": {}, "refresh": []}


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


def context(**conf):
    return {"params": {**PARAMS, **conf}, "dag_run": SimpleNamespace(conf=conf)}


@pytest.fixture
def announced(platform, airflow_runs):
    """Give events to a run of `candidates`; returns the runs of `release` that it started."""

    def start(*events, later=None):
        started = releases.start_releases(asset_context(*events, later=later))
        return [{"run_id": run, "conf": airflow_runs.started["release", run]} for run in started]

    return start


def looked_up(commit, recipe, version="2", **record):
    """What the job `candidate` leaves of a version."""
    name = f"candidate-{version}"
    record = {"model": "kubectl", "version": version, "recipe": recipe, **record}
    commit(name, {"candidate.json": json.dumps(record)})
    return name


def test_the_form_names_model_and_version():
    plan = releases.planned_release(context(version="7"))
    assert plan["candidate"] == {"job": "candidate", "config": {"model": "kubectl", "version": "7"}}
    assert plan["registration"] is None
    plan = releases.planned_release(context(model="own-data", overrides={"sizes.candidate": "large"}))
    assert plan["candidate"]["config"] == {"model": "own-data", "version": None}
    assert plan["candidate"]["size"] == "large"


def test_a_registered_candidate_brings_its_own_version_and_registration(registered, announced, store):
    [run] = announced(registered("3", recipe="own/0.8M_lora_cpu", model="own-data"))
    uri = store.uri("register-own-data-3")
    assert run["conf"] == {"model": "own-data", "version": "3", "registration": uri}
    assert re.fullmatch(r"candidate__own-data-v3__[0-9a-f]{8}", run["run_id"])
    assert is_release_of(run["run_id"], "arrival__3") and not is_release_of(run["run_id"], "arrival__4")
    plan = releases.planned_release(context(**run["conf"]))
    assert plan == {
        "candidate": {"job": "candidate", "config": {"model": "own-data", "version": "3"}},
        "registration": uri,
    }


@pytest.mark.parametrize(
    ("conf", "model"),
    [
        ({"recipe": "own/0.8M_lora_cpu", "version": "3"}, "own-data"),
        ({"recipe": "own/0.8M_lora_cpu", "version": "3", "overrides": {"model": "another"}}, "another"),
        ({"recipe": "own/0.8M_lora_cpu", "model": "kubectl"}, "kubectl"),
    ],
)
def test_a_run_of_version_0_1_names_the_model_by_its_recipe(conf, model):
    assert releases.planned_release(context(**conf))["candidate"]["config"]["model"] == model


CARRIED = {"evaluate.max_new_tokens": 40, "max_tokens": 128, "canary.steps": [0.2], "engine.batch_size": 8}


def carried():
    return resolve("demo/0.8M_sft_cpu", CARRIED, stages=["engine"]).model_dump(mode="json")


def test_a_candidate_is_released_as_its_run_overrode_the_recipe(store, commit, caplog, monkeypatch, tmp_path):
    name = looked_up(commit, "demo/0.8M_sft_cpu", resolved_recipe=carried())
    monkeypatch.setattr(recipes, "_FOLDER", tmp_path)
    with caplog.at_level("INFO"):
        plan = releases.release_recipe(context(), store.uri(name))
    engine = plan["engine"]["config"]
    assert (engine["max_new_tokens"], engine["max_tokens"], engine["batch_size"]) == (40, 128, 8)
    assert plan["canary"]["steps"] == [0.2]
    assert plan["name"] == "demo/0.8M_sft_cpu" and plan["description"] and plan["gates"]["evaluation"]
    assert json.loads(json.dumps(plan)) == plan
    assert '"evaluate.max_new_tokens": 40' in caplog.text


def test_the_forms_overrides_come_on_top_of_the_candidates(store, commit, caplog):
    name = looked_up(commit, "demo/0.8M_sft_cpu", resolved_recipe=carried())
    overrides = {"engine.compute_type": "float32", "canary.min_requests": 9, "finetune.seed": 3}
    with caplog.at_level("WARNING"):
        plan = releases.release_recipe(context(overrides=overrides), store.uri(name))
    engine = plan["engine"]["config"]
    assert (engine["compute_type"], engine["max_new_tokens"], engine["batch_size"]) == ("float32", 40, 8)
    assert (plan["canary"]["min_requests"], plan["canary"]["steps"]) == (9, [0.2])
    assert "no task of a release reads finetune.seed, so that overriding it changes nothing" in caplog.text


def test_a_candidate_without_a_recipe_is_released_by_the_one_that_it_names(store, commit, caplog):
    name = looked_up(commit, "demo/0.8M_sft_cpu")
    with caplog.at_level("WARNING"):
        plan = releases.release_recipe(context(overrides={"canary.steps": [0.3]}), store.uri(name))
    bare = resolve("demo/0.8M_sft_cpu", {"canary.steps": [0.3]}, stages=["engine"])
    assert plan == bare.plan()
    assert "version 2 of kubectl was registered before candidates brought their recipe along" in caplog.text


def test_a_recipe_that_a_run_names_beside_its_candidate_is_told_to_have_no_effect(store, commit, caplog):
    name = looked_up(commit, "demo/0.8M_sft_cpu", resolved_recipe=carried())
    with caplog.at_level("WARNING"):
        plan = releases.release_recipe(context(recipe="demo/0.8M_lora_cpu"), store.uri(name))
    assert plan["name"] == "demo/0.8M_sft_cpu"
    assert "the run names the recipe demo/0.8M_lora_cpu, from which it takes only the model" in caplog.text


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
    looked_up(commit, "demo/0.8M_sft_cpu")
    event = registered("2")
    for name in ("curate-1", "candidate-2"):
        event.extra = {"artifact": store.uri(name)}
        with pytest.raises(AirflowFailException, match=f"{name} is no registration of a candidate"):
            announced(event)


def test_an_unknown_key_ends_the_run_before_anything_is_built(store, commit):
    name = looked_up(commit, "demo/0.8M_sft_cpu", resolved_recipe=carried())
    with pytest.raises(AirflowFailException, match=r"'canary\.stepz': did you mean 'steps'"):
        releases.release_recipe(context(overrides={"canary.stepz": [0.1]}), store.uri(name))


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
