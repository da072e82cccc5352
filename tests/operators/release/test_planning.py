from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from types import SimpleNamespace

import pytest
from airflow.sdk.exceptions import AirflowFailException

from include.release.candidates import is_release_of
from include.specs import spec_class
from operators.release import planning as releases
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


def announced(*events):
    return releases.announced_releases({"triggering_asset_events": {"candidate": list(events)}})


def test_the_form_names_recipe_version_and_overrides():
    plan = releases.planned_release(context(version="7", overrides={"canary.steps": [0.3], "engine.rows": 64}))
    assert plan["candidate"] == {"job": "candidate", "config": {"model": "kubectl", "version": "7"}}
    assert plan["canary"]["steps"] == [0.3]
    assert plan["engine"]["job"] == "engine" and plan["engine"]["config"]["rows"] == 64
    assert releases.planned_release(context())["candidate"]["config"]["version"] is None
    assert json.loads(json.dumps(plan)) == plan


def test_a_registered_candidate_brings_its_own_version_and_recipe(registered):
    [run] = announced(registered("3", recipe="own/0.8M_lora_cpu", model="own-data"))
    assert run["conf"] == {"recipe": "own/0.8M_lora_cpu", "version": "3"}
    assert re.fullmatch(r"candidate__own-data-v3__[0-9a-f]{8}", run["run_id"])
    assert is_release_of(run["run_id"], "arrival__3") and not is_release_of(run["run_id"], "arrival__4")
    plan = releases.planned_release(context(**run["conf"]))
    assert plan["candidate"]["config"] == {"model": "own-data", "version": "3"}
    assert plan["engine"]["config"]["max_tokens"] == 256


def test_events_that_airflow_merged_or_doubled_give_one_run_a_model(registered, caplog):
    events = [
        registered("10", minute=1),
        registered("9", minute=2),
        registered("4", model="own-data", recipe="own/0.8M_lora_cpu"),
    ]
    with caplog.at_level("INFO"):
        runs = announced(*events, events[2])
    assert [(run["conf"]["recipe"], run["conf"]["version"]) for run in runs] == [
        ("own/0.8M_lora_cpu", "4"),
        ("demo/0.8M_sft_cpu", "10"),
    ]
    assert "version 9 of kubectl is superseded by version 10" in caplog.text
    assert {run["run_id"] for run in announced(events[0], events[2])} == {run["run_id"] for run in runs}


def test_a_model_that_an_override_named_is_released_under_that_name(registered):
    [run] = announced(registered("3", model="another"))
    assert releases.planned_release(context(**run["conf"]))["candidate"]["config"]["model"] == "another"


def test_a_registration_that_is_gone_keeps_none_of_the_others(registered, store, caplog):
    gone = registered("2", minute=3)
    gone.extra["artifact"] = store.uri("register-0")
    assert [run["conf"]["version"] for run in announced(gone, registered("1"))] == ["1"]
    assert "register-0" in caplog.text
    with pytest.raises(AirflowFailException, match="none of the announced candidates can be read"):
        announced(gone)


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
