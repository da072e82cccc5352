"""The sections of the DAG `retention`, and the unfinished runs that it finds in Airflow."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

from airflow.sdk import CronTriggerTimetable
from airflow.sdk.exceptions import AirflowSkipException

from include.artifacts.uses import Run, recorded_runs
from include.platforms import current_platform
from include.recipes.resolved import Section
from operators.errors import as_airflow_errors
from operators.store import platform_store

if TYPE_CHECKING:
    from airflow.sdk import Context

_BATCH = 50
"""Run ids in one request: they are part of its URL."""


def retention_schedule() -> CronTriggerTimetable | None:
    """Return the platform's timetable for the DAG; None where it is only triggered."""
    cron = current_platform().retention.cron
    return CronTriggerTimetable(cron, timezone="UTC") if cron else None


def deletes_by_default() -> bool:
    """Return whether the platform's scheduled runs delete what they find."""
    return current_platform().retention.delete


def plan_section(context: Context) -> dict[str, Any]:
    """Return the section of the job `retention`, with the runs that are unfinished now.

    Raises:
        AirflowException: the store cannot be reached now.
        AirflowFailException: it never can be, as it is configured.
    """
    platform = current_platform()
    with as_airflow_errors():
        recorded = recorded_runs(platform_store(platform))
    config = {
        "policy": platform.retention.policy.model_dump(mode="json"),
        "unfinished_runs": [run.model_dump() for run in _unfinished(context["ti"], recorded)],
        "controller_url": platform.serving.controller_url,
        "token_file": platform.serving.token_file,
        "records": platform.serving.records,
    }
    return Section(job="retention", config=config).document()


def sweep_section(context: Context) -> dict[str, Any]:
    """Return the section with the runs that are unfinished by now, for the sweep.

    Raises:
        AirflowSkipException: the run is not to delete anything.
    """
    if not context["params"]["delete"]:
        raise AirflowSkipException("the Param delete is off: the plan says what to delete, and nothing is deleted")
    return plan_section(context)


def _unfinished(ti: Any, recorded: list[Run]) -> list[Run]:
    """Return those of `recorded` that are queued or running in Airflow."""
    by_dag: dict[str, list[Run]] = defaultdict(list)
    for run in recorded:
        by_dag[run.dag_id].append(run)
    found = []
    for dag_id, runs in by_dag.items():
        for start in range(0, len(runs), _BATCH):
            batch = runs[start : start + _BATCH]
            if _count_unfinished(ti, dag_id, batch):
                found += [run for run in batch if _count_unfinished(ti, dag_id, [run])]
    return found


def _count_unfinished(ti: Any, dag_id: str, runs: list[Run]) -> int:
    return ti.get_dr_count(dag_id=dag_id, run_ids=[run.run_id for run in runs], states=["queued", "running"])
