"""The page that every run ends with, however it ends."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from airflow.sdk import XComArg, get_current_context, task

from include.errors import AnemoneError
from include.recipes.resolved import Section
from operators.errors import FAILURE_MESSAGE_KEY
from operators.gates.sensor import GateSensor
from operators.links import EVIDENCE_KEY, EVIDENCE_PENDING_KEY, ReportLink
from operators.stages import stage
from operators.store import store_of

if TYPE_CHECKING:
    from airflow.sdk import BaseOperator, Context

_log = logging.getLogger(__name__)

_SHOWN = ("name", "description", "gates")
"""Of a plan, on the page."""


def report_at_the_end(made: Mapping[str, BaseOperator], rollout: BaseOperator | None = None, plan: Any = None) -> None:
    """Add the tasks that report, after all others of the DAG.

    They are teardowns: Airflow runs them whatever became of the tasks before, and their own end never decides how the
    run ended, so a stopped run stays red and a good one is not failed by its report.

    Args:
        made: the tasks whose artifacts are on the page, by the names that they have there. Those of `Inputs` in
            `include/specs/report.py` have sections of their own; any other name can be used, too.
        rollout: the task that leads the canary, if there is one.
        plan: what the task returned that resolved the recipe (an XComArg of a task with multiple outputs), if there is
            one. The page then shows that recipe, whatever its file holds by now.
    """
    dag = next(iter(made.values())).dag
    before = list(dag.tasks)
    tasks = {role: operator.task_id for role, operator in made.items()}
    planner = plan.operator.task_id if plan is not None else None
    canary = rollout.task_id if rollout is not None else None

    @task(multiple_outputs=True)
    def outcome() -> dict[str, Any]:
        return run_outcome(get_current_context(), tasks, planner, canary)

    ended: Any = outcome()
    before >> ended.operator
    report = stage("report", ended["section"], inputs=ended["inputs"], links=(ReportLink(),))
    ended.operator.as_teardown()
    report.as_teardown()


def run_outcome(
    context: Context, made: Mapping[str, str], planner: str | None = None, canary: str | None = None
) -> dict[str, Any]:
    """Return what the job `report` needs to know of this run.

    Args:
        made: task id by input of the job.
        planner: id of the task that resolved the recipe.
        canary: id of the task that leads the canary.

    Returns:
        {"section": of the job, "inputs": URI by name, None where the run made no such artifact}.
    """
    ti, run, params = context["ti"], context["dag_run"], context["params"]
    tasks = [task for task in context["dag"].tasks if not task.is_teardown]
    names = [task.task_id for task in tasks]
    states = ti.get_task_states(dag_id=ti.dag_id, task_ids=names, run_ids=[run.run_id]).get(run.run_id, {})
    endings = [
        {
            "task": task.task_id,
            "state": states.get(task.task_id),
            "message": ti.xcom_pull(task_ids=task.task_id, key=FAILURE_MESSAGE_KEY)
            if states.get(task.task_id) == "failed"
            else None,
            "gate": task.gate if isinstance(task, GateSensor) else None,
        }
        for task in tasks
    ]
    inputs = {role: ti.xcom_pull(task_ids=name) for role, name in made.items()}
    evidence_pending = None
    if canary is not None:
        inputs["rollout"] = ti.xcom_pull(task_ids=canary, key=EVIDENCE_KEY)
        pending = ti.xcom_pull(task_ids=canary, key=EVIDENCE_PENDING_KEY)
        if pending is not None and not _is_stored(pending):
            inputs["rollout"], evidence_pending = None, pending
    recipe = {key: ti.xcom_pull(task_ids=planner, key=key) for key in _SHOWN} if planner is not None else {}
    gates = dict(recipe.get("gates") or {})
    for sensor in (found for found in tasks if isinstance(found, GateSensor)):
        limits = _limits(ti, sensor)
        if sensor.gate in limits:
            gates[sensor.gate] = limits[sensor.gate]
    assert run.start_date is not None
    config = {
        "dag": ti.dag_id,
        "run_id": run.run_id,
        "started": run.start_date.isoformat(),
        "tasks": endings,
        "roles": list(inputs),
        "rollout": canary,
        "recipe": recipe.get("name") or params.get("recipe") or "",
        "purpose": recipe.get("description") or "",
        "overrides": params.get("overrides", {}),
        "drill": params.get("drill", "none"),
        "evidence_pending": evidence_pending,
        "gates": gates,
    }
    return {"section": Section(job="report", config=config).document(), "inputs": inputs}


def _is_stored(uri: str) -> bool:
    """Return whether the artifact can be read from the store by now: without it, the page still tells of the run."""
    try:
        store, name = store_of(uri)
        return store.manifest(name) is not None
    except AnemoneError as error:
        _log.warning("the report says where the rollout's evidence will be, which cannot be read now: %s", error)
        return False


def _limits(ti: Any, gate: GateSensor) -> Mapping[str, Any]:
    """Return the limits that a gate was given, wherever they came from."""
    given: Any = gate.gates
    if isinstance(given, XComArg):
        ((source, key),) = given.iter_references()
        given = ti.xcom_pull(task_ids=source.task_id, key=key)
    return given or {}
