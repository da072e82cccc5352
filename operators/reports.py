"""The page that every run ends with, however it ends."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from airflow.sdk import get_current_context, task

from include.errors import AnemoneError
from include.recipes import resolve
from operators.errors import FAILURE_MESSAGE_KEY
from operators.links import EVIDENCE_KEY, ReportLink
from operators.stages import stage

if TYPE_CHECKING:
    from airflow.sdk import BaseOperator, Context


def report_at_the_end(made: Mapping[str, BaseOperator], rollout: BaseOperator | None = None) -> None:
    """Add the tasks that report, after all others of the DAG.

    They are teardowns: Airflow runs them whatever became of the tasks before, and their own end never decides how the
    run ended, so a stopped run stays red and a good one is not failed by its report.

    Args:
        made: by input of the job `report`, the task that returns the artifact's URI.
        rollout: the task that leads the canary, if there is one.
    """
    dag = next(iter(made.values())).dag
    before = list(dag.tasks)
    tasks = {role: operator.task_id for role, operator in made.items()}
    canary = rollout.task_id if rollout is not None else None

    @task(multiple_outputs=True)
    def outcome() -> dict[str, Any]:
        return run_outcome(get_current_context(), tasks, canary)

    ended = outcome()
    before >> ended.operator
    report = stage("report", ended["section"], inputs=ended["inputs"], links=(ReportLink(),))
    ended.operator.as_teardown()
    report.as_teardown()


def run_outcome(context: Context, made: Mapping[str, str], canary: str | None) -> dict[str, Any]:
    """What the job `report` needs to know of this run.

    Args:
        made: task id by input of the job.
        canary: id of the task that leads the canary.

    Returns:
        {"section": {"job", "config"}, "inputs": URI by name, None where the run made no such artifact}.
    """
    ti, run, params = context["ti"], context["dag_run"], context["params"]
    tasks = [task.task_id for task in context["dag"].tasks if not task.is_teardown]
    states = ti.get_task_states(dag_id=ti.dag_id, task_ids=tasks, run_ids=[run.run_id]).get(run.run_id, {})
    endings = [
        {
            "task": name,
            "state": states.get(name),
            "sentence": ti.xcom_pull(task_ids=name, key=FAILURE_MESSAGE_KEY) if states.get(name) == "failed" else None,
        }
        for name in tasks
    ]
    inputs = {role: ti.xcom_pull(task_ids=name) for role, name in made.items()}
    if canary is not None:
        inputs["rollout"] = ti.xcom_pull(task_ids=canary, key=EVIDENCE_KEY)
    config = {
        "dag": ti.dag_id,
        "run_id": run.run_id,
        "started": run.start_date.isoformat(),
        "tasks": endings,
        "recipe": params["recipe"],
        "overrides": params["overrides"],
        "drill": params.get("drill", "none"),
        **_of_the_recipe(params),
    }
    return {"section": {"job": "report", "config": config}, "inputs": inputs}


def _of_the_recipe(params: Mapping[str, Any]) -> dict[str, Any]:
    try:
        sections = resolve(params["recipe"], params["overrides"])
    except AnemoneError:
        # That ended the run, and the page says so.
        return {}
    return {"purpose": sections["description"], "gate": sections["gates"]["evaluation"]}
