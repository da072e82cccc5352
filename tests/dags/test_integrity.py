"""Every DAG file: imports quickly, wires what exists, and follows the house's rules."""

from __future__ import annotations

import ast
import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
from airflow.sdk import DAG

from include.home import PROJECT
from include.platforms import load_platform
from include.recipes import recipe_names, resolve
from include.release.rollouts import Drill
from include.specs import spec_class
from include.specs.base import Artifact
from operators.local.operator import LocalJobOperator
from operators.recipes import OPTIONAL_STAGES
from tests.include.test_remedies import MESSAGES

FILES = sorted((PROJECT / "dags").glob("*.py"))
IMPORT_BUDGET = 0.5
"""CPU-seconds above `import airflow.sdk`."""


def load(path: Path) -> DAG:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found = [value for value in vars(module).values() if isinstance(value, DAG)]
    if not found:
        found = [module.__dict__[path.stem]()]
    assert len(found) == 1, f"{path.name} holds {len(found)} DAGs"
    return found[0]


@pytest.fixture(scope="module")
def dags() -> dict[str, DAG]:
    return {dag.dag_id: dag for dag in map(load, FILES)}


def test_every_file_is_a_dag_of_its_own_name(dags):
    assert sorted(dags) == [path.stem for path in FILES]


def test_the_rules_of_the_house(dags):
    for dag in dags.values():
        assert "anemone" in dag.tags
        assert dag.catchup is False
        assert dag.doc_md
        for task in dag.tasks:
            assert task.owner == "anemone", task.task_id
            assert task.retries >= 1, task.task_id


REFRESHED = {
    (found[1], found[2])
    for _, message in MESSAGES
    for found in re.finditer(r"run (customize|release|the DAG) .*?refresh: \[(\w+)\]", message)
}
"""DAG and stage of every message that names the Param `refresh`."""


@pytest.mark.remedy("the Param refresh=[%r] makes it again")
@pytest.mark.parametrize(("dag", "stage"), sorted(REFRESHED))
def test_a_run_with_the_param_refresh_makes_a_stage_anew(dags, store, commit, dag, stage):
    found = dags["customize" if dag == "the DAG" else dag]
    assert stage in found.params.get_param("refresh").schema["items"]["enum"] and found.has_task(stage)

    task = LocalJobOperator(task_id=stage, section={"job": "generate", "config": {"variant": "heldout", "rows": 5}})
    task.__dict__["platform"] = load_platform("laptop").model_copy(update={"store": store.root})
    commit(task.plan({"run_id": "manual__1", "params": {"refresh": []}}).name, {"data.jsonl": "{}"})
    # A cleared task, and another run without the Param, read it again.
    assert task.reused(task.plan({"run_id": "manual__2", "params": {"refresh": []}})) is not None
    assert task.reused(task.plan({"run_id": "manual__2", "params": {"refresh": [stage]}})) is None


def test_nothing_that_a_mapped_task_is_given_is_a_template(dags):
    """Airflow renders it, unlike other XComs, and anybody may choose a file's name."""
    for task in [task for dag in dags.values() for task in dag.tasks if task.is_mapped]:
        assert not task.template_fields, task.task_id


@pytest.mark.parametrize("form", ["customize", "release", "rollback", "retention"])
def test_every_form_can_be_sent_as_it_opens(dags, form):
    """Airflow's form takes an empty text for a missing one, and keeps its button locked."""
    for name in dags[form].params:
        assert dags[form].params.get_param(name).value != "", name


@pytest.mark.parametrize("form", ["customize", "release", "rollback", "retention"])
def test_every_param_of_a_form_explains_itself(dags, form):
    for name in dags[form].params:
        schema = dags[form].params.get_param(name).schema
        assert {"title", "description_md", "section"} <= set(schema), name


@pytest.mark.parametrize("recipe", recipe_names("finetune"))
@pytest.mark.parametrize("dag", ["customize", "release"])
def test_every_stage_gets_the_inputs_that_its_job_takes(dags, recipe, dag):
    sections = resolve(recipe, stages=OPTIONAL_STAGES).plan()
    for task in dags[dag].tasks:
        section = sections.get(task.task_id)
        if section is None or not hasattr(task, "inputs"):
            continue
        fields = spec_class(section["job"]).model_fields["inputs"].annotation.model_fields
        required = {name for name, field in fields.items() if field.annotation is Artifact}
        assert required <= set(task.inputs) <= set(fields), task.task_id


def test_nothing_trains_before_the_data_and_nothing_registers_before_the_model_were_judged(dags):
    dag = dags["customize"]
    assert "data_quality_gate" in dag.get_task("finetune").upstream_task_ids
    assert "evaluation_gate" in dag.get_task("register").upstream_task_ids


def test_the_form_offers_every_drill_there_is(dags):
    assert dags["release"].params.get_param("drill").schema["enum"] == list(get_args(Drill))


def test_the_alias_moves_after_the_traffic(dags):
    for dag, rollout in (("release", "canary"), ("rollback", "rollback")):
        assert rollout in dags[dag].get_task("promote").upstream_task_ids


def test_a_rollback_starts_nothing_of_the_training_stack_before_the_traffic_is_back(dags):
    assert dags["rollback"].get_task("rollback").upstream_task_ids == set()


def test_a_registered_candidate_is_announced_and_only_its_own_run_releases_it(dags):
    (candidate,) = dags["customize"].get_task("register").outlets
    assert dags["candidates"].timetable.asset_condition.objects == (candidate,)
    assert dags["release"].schedule is None


@pytest.mark.parametrize("name", ["arrivals", "candidates"])
def test_what_is_announced_is_started_by_event_and_by_clock_before_other_work(dags, name):
    timetable = dags[name].timetable
    (asset,) = timetable.asset_condition.objects
    assert timetable.timetable.expression == "*/5 * * * *"
    (start,) = dags[name].tasks
    # Of one asset that a DAG names twice, Airflow takes the watchers of the task's.
    assert [inlet.watchers for inlet in start.inlets] == [asset.watchers]
    assert start.inlets == [asset]
    others = [task for dag in ("customize", "release") for task in dags[dag].tasks]
    assert start.weight_rule == "absolute" and start.priority_weight > len(others)


def test_what_follows_the_traffic_outlasts_a_controller_that_is_away(dags):
    for dag, tasks in (("release", ("canary", "promote")), ("rollback", ("rollback", "promote"))):
        for task in map(dags[dag].get_task, tasks):
            assert task.retries * task.retry_delay.total_seconds() >= 600, (dag, task.task_id)


@pytest.mark.parametrize("dag", ["customize", "release"])
def test_every_run_ends_with_its_report_whatever_became_of_it(dags, dag):
    tasks = {task.task_id: task for task in dags[dag].tasks}
    outcome, report = tasks.pop("outcome"), tasks.pop("report")
    assert outcome.upstream_task_ids == tasks.keys()
    assert report.upstream_task_ids == {"outcome"}
    assert all(task.is_teardown and not task.on_failure_fail_dagrun for task in (outcome, report))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_imports_within_the_budget(path):
    program = f"""
import runpy, sys, time
import airflow.sdk
start = time.process_time()
runpy.run_path({str(path)!r})
print(time.process_time() - start)
assert not any(name.startswith(("kubernetes", "operators.kubernetes")) for name in sys.modules)
"""
    command = [sys.executable, "-c", program]
    # Once more where it was too much: a neighbour's work in the caches costs CPU time, too.
    used = (float(subprocess.run(command, capture_output=True, text=True, check=True).stdout) for _ in range(2))
    assert any(seconds <= IMPORT_BUDGET for seconds in used)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_dag_files_only_wire(path):
    modules = {
        name
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([node.module] if isinstance(node, ast.ImportFrom) else [one.name for one in node.names])
    }
    assert modules <= {"__future__", "airflow.sdk", "operators"}
