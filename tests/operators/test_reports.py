from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk import DAG
from airflow.sdk import task as as_task

from include import recipes
from include.recipes import resolve
from include.specs.report import Config, Inputs
from operators.errors import FAILURE_MESSAGE_KEY
from operators.gates.sensor import GateSensor
from operators.links import EVIDENCE_KEY, EVIDENCE_PENDING_KEY
from operators.reports import report_at_the_end, run_outcome
from operators.stages import stage

RECIPE = "demo/0.8M_lora_cpu"


class TaskInstance:
    """A run as Airflow tells it: states and XComs by task."""

    dag_id = "release"

    def __init__(self, states, xcoms):
        self._states, self._xcoms = states, xcoms

    def get_task_states(self, dag_id, task_ids, run_ids):
        (run_id,) = run_ids
        return {run_id: {name: self._states[name] for name in task_ids if name in self._states}}

    def xcom_pull(self, task_ids, key="return_value"):
        return self._xcoms.get((task_ids, key))


def dag():
    with DAG("release", schedule=None) as made:
        first, second = stage("candidate", None), stage("engine", None)
        canary = stage("canary", None)
        first >> second >> canary

        @as_task(multiple_outputs=True)
        def how() -> dict[str, Any]:
            return {}

        report_at_the_end({"candidate": first, "engine": second}, rollout=canary, plan=how())
    return made


def outcome(states, xcoms, **params):
    context = {
        "dag": dag(),
        "ti": TaskInstance(states, xcoms),
        "dag_run": SimpleNamespace(run_id="manual__1", start_date=datetime(2026, 1, 2, tzinfo=UTC)),
        "params": {"recipe": RECIPE, "overrides": {}, **params},
    }
    found = run_outcome(context, {"candidate": "candidate", "engine": "engine"}, "how", "canary")
    assert found["section"]["job"] == "report"
    assert set(found["inputs"]) <= set(Inputs.model_fields)
    assert list(found["inputs"]) == found["section"]["config"]["roles"]
    return Config.model_validate(found["section"]["config"]), found["inputs"]


def test_both_tasks_follow_everything_and_decide_nothing():
    made = dag()
    ended, report = made.get_task("outcome"), made.get_task("report")
    assert ended.upstream_task_ids == {"candidate", "engine", "canary", "how"}
    assert report.upstream_task_ids == {"outcome"}
    for task in (ended, report):
        assert task.is_teardown and not task.on_failure_fail_dagrun
    assert [link.name for link in report.operator_extra_links] == ["Report"]


def test_the_message_of_the_task_that_failed_is_told():
    config, inputs = outcome(
        {"candidate": "success", "engine": "failed", "canary": "upstream_failed"},
        {("candidate", "return_value"): "file:///store/candidate-1", ("engine", FAILURE_MESSAGE_KEY): "no room"},
    )
    assert [(task.task, task.state, task.message) for task in config.tasks] == [
        ("candidate", "success", None),
        ("engine", "failed", "no room"),
        ("canary", "upstream_failed", None),
        ("how", None, None),
    ]
    assert inputs == {"candidate": "file:///store/candidate-1", "engine": None, "rollout": None}


def test_a_message_of_an_earlier_try_is_not_told_of_a_task_that_succeeded():
    states = {"candidate": "success", "engine": "success", "canary": "success"}
    config, inputs = outcome(
        states, {("engine", FAILURE_MESSAGE_KEY): "no room", ("canary", EVIDENCE_KEY): "file:///store/canary-1"}
    )
    assert [task.message for task in config.tasks] == [None, None, None, None]
    assert inputs["rollout"] == "file:///store/canary-1"


@pytest.mark.parametrize("stored", [False, True])
def test_evidence_that_is_stored_later_is_told_until_it_is_there(store, commit, stored):
    if stored:
        commit("canary-1", {"status.json": "{}"})
    uri = store.uri("canary-1")
    config, inputs = outcome({}, {("canary", EVIDENCE_KEY): uri, ("canary", EVIDENCE_PENDING_KEY): uri})
    assert (config.evidence_pending, inputs["rollout"]) == ((None, uri) if stored else (uri, None))


def test_evidence_that_is_damaged_costs_no_report(store, commit):
    commit("canary-1", {"status.json": "{}"})
    (Path(store.root.removeprefix("file://")) / "canary-1" / "manifest.json").write_text("{")
    uri = store.uri("canary-1")
    config, inputs = outcome({}, {("canary", EVIDENCE_KEY): uri, ("canary", EVIDENCE_PENDING_KEY): uri})
    assert (config.evidence_pending, inputs["rollout"]) == (uri, None)


def planned(overrides):
    """What the task left that resolved the recipe when the run began."""
    return {("how", key): value for key, value in resolve(RECIPE, overrides).plan().items()}


def test_the_recipe_is_told_as_the_run_began_with_it(monkeypatch, tmp_path):
    overrides = {"gates.evaluation.min_exact_match": 0.5}
    began = planned(overrides)
    purpose = resolve(RECIPE).description
    edited = (recipes._FOLDER / f"{RECIPE}.yaml").read_text().replace("description:", "description: edited,")
    (tmp_path / "demo").mkdir()
    (tmp_path / f"{RECIPE}.yaml").write_text(edited.replace("min_rows:", "min_rows: 9 #"))
    monkeypatch.setattr(recipes, "_FOLDER", tmp_path)
    config, _ = outcome({}, began, overrides=overrides, drill="slow")
    assert config.gates["evaluation"]["min_exact_match"] == 0.5
    assert (config.recipe, config.purpose) == (RECIPE, purpose)
    assert config.drill == "slow" and [task.state for task in config.tasks] == [None, None, None, None]


def test_a_dag_without_a_recipe_is_told_with_the_limits_that_its_gates_were_given():
    with DAG("teach", schedule=None) as made:
        rows = stage("distill", None)

        @as_task(multiple_outputs=True)
        def plan() -> dict[str, Any]:
            return {}

        GateSensor(task_id="first", gate="evaluation", artifact=rows.output, gates=plan()["gates"])
        GateSensor(task_id="second", gate="data_quality", artifact=rows.output)
        report_at_the_end({"rows": rows})
    limits = {"evaluation": {"min_rows": 7}, "another": {}}
    instance = TaskInstance(
        {"first": "failed"}, {("plan", "gates"): limits, ("first", FAILURE_MESSAGE_KEY): "fail: 3 rows"}
    )
    context = {
        "dag": made,
        "ti": instance,
        "dag_run": SimpleNamespace(run_id="manual__1", start_date=datetime(2026, 1, 2, tzinfo=UTC)),
        "params": {},
    }
    found = run_outcome(context, {"rows": "distill"})
    config = Config.model_validate(found["section"]["config"])
    assert config.recipe == "" and config.gates == {"evaluation": {"min_rows": 7}}
    assert {task.task: task.gate for task in config.tasks if task.gate} == {
        "first": "evaluation",
        "second": "data_quality",
    }
    assert found["inputs"] == {"rows": None}


def test_a_recipe_that_does_not_resolve_is_no_reason_to_be_silent():
    config, _ = outcome({}, {}, overrides={"nonsense": 1})
    assert config.overrides == {"nonsense": 1} and (config.recipe, config.purpose) == (RECIPE, "")
