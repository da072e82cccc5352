from __future__ import annotations

import json
from datetime import UTC, datetime
from types import SimpleNamespace

import pytest
from airflow.sdk.exceptions import AirflowException, AirflowFailException

from include.rollouts import TargetStatus
from operators import releases
from tests.operators.conftest import live

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
            extra={"artifact": store.uri(name), "metrics": {}}, timestamp=datetime(2026, 1, 2, 3, minute, tzinfo=UTC)
        )

    return make


def context(*events, **params):
    found = {"candidate": list(events)} if events else {}
    return {"params": {**PARAMS, **params}, "triggering_asset_events": found}


def test_the_form_names_recipe_version_and_overrides():
    plan = releases.planned_release(context(version="7", overrides={"canary.steps": [0.3], "engine.rows": 64}))
    assert plan["candidate"] == {"job": "candidate", "config": {"model": "kubectl", "version": "7"}}
    assert plan["canary"]["steps"] == [0.3]
    assert plan["engine"]["job"] == "engine" and plan["engine"]["config"]["rows"] == 64
    assert releases.planned_release(context())["candidate"]["config"]["version"] is None
    assert json.loads(json.dumps(plan)) == plan


def test_a_registered_candidate_brings_its_own_version_and_recipe(registered):
    event = registered("3", recipe="own/0.8M_lora_cpu", model="own-data")
    plan = releases.planned_release(context(event))
    assert plan["candidate"]["config"] == {"model": "own-data", "version": "3"}
    assert plan["engine"]["config"]["max_tokens"] == 256


def test_of_events_that_airflow_merged_the_newest_candidate_is_released_and_the_others_named(registered, caplog):
    events = [
        registered("10", minute=1),
        registered("9", minute=2),
        registered("4", model="own-data", recipe="own/0.8M_lora_cpu"),
    ]
    plan = releases.planned_release(context(*events))
    assert plan["candidate"]["config"] == {"model": "kubectl", "version": "10"}
    assert "a candidate of own-data was announced in the same run" in caplog.text


def test_an_unknown_key_ends_the_run_at_its_first_task():
    with pytest.raises(AirflowFailException, match=r"'canary\.stepz': did you mean 'steps'"):
        releases.planned_release(context(overrides={"canary.stepz": [0.1]}))


def test_a_registration_that_is_gone_ends_the_run(store):
    event = SimpleNamespace(extra={"artifact": store.uri("register-0")}, timestamp=datetime.now(UTC))
    with pytest.raises(AirflowFailException, match="register-0"):
        releases.planned_release(context(event))


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


def test_the_alias_follows_what_is_live_by_now(platform, controller):
    controller.targets["kubectl"] = TargetStatus(target="kubectl", champion=live("3"))
    assert releases.promotion("kubectl") == {"job": "promote", "config": {"model": "kubectl", "version": "3"}}


def test_without_a_live_version_the_alias_stays(platform, controller):
    with pytest.raises(AirflowFailException, match="nothing is live on kubectl any more"):
        releases.promotion("kubectl")
    controller.failing = 503
    with pytest.raises(AirflowException) as failure:
        releases.promotion("kubectl")
    assert not isinstance(failure.value, AirflowFailException)


def test_the_platforms_own_model_stands_first():
    choices = releases.model_choices()
    assert choices[0] == "kubectl" and len(choices) == len(set(choices)) and "own-data" in choices
