"""What the DAG `retention` asks for, and what it knows of the runs that go on."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

from airflow.sdk import CronTriggerTimetable
from airflow.sdk.exceptions import AirflowException, AirflowFailException, AirflowSkipException

from include.artifacts.uses import Run, recorded_runs
from include.errors import AnemoneError, TryAgainError
from include.platforms import current_platform
from operators.store import platform_store

if TYPE_CHECKING:
    from airflow.sdk import Context

_AT_ONCE = 50
"""Run ids in one question: they stand in its URL."""


def retention_schedule() -> CronTriggerTimetable | None:
    """The platform's cron for it, or none."""
    cron = current_platform().retention.cron
    return CronTriggerTimetable(cron, timezone="UTC") if cron else None


def deletes_by_itself() -> bool:
    """Whether the platform wants what is found to go."""
    return current_platform().retention.delete


def planned_retention(context: Context) -> dict[str, Any]:
    """The section of the job `retention`, with the runs that go on now."""
    platform = current_platform()
    try:
        recorded = recorded_runs(platform_store(platform))
    except TryAgainError as error:
        raise AirflowException(str(error)) from None
    except AnemoneError as error:
        raise AirflowFailException(str(error)) from None
    config = {
        "policy": platform.retention.policy.model_dump(mode="json"),
        "going_on": [run.model_dump() for run in _going_on(context["ti"], recorded)],
        "controller_url": platform.serving.controller_url,
        "token_file": platform.serving.token_file,
        "records": platform.serving.records,
    }
    return {"job": "retention", "config": config}


def wanted_retention(context: Context) -> dict[str, Any]:
    """The same anew, for the sweep. Skips the task unless the run is to delete."""
    if not context["params"]["delete"]:
        raise AirflowSkipException("the Param delete is off: the plan says what would go, and nothing goes")
    return planned_retention(context)


def _going_on(ti: Any, recorded: list[Run]) -> list[Run]:
    """Those that Airflow calls queued or running."""
    by_dag: dict[str, list[Run]] = defaultdict(list)
    for run in recorded:
        by_dag[run.dag_id].append(run)
    found = []
    for dag_id, runs in by_dag.items():
        for start in range(0, len(runs), _AT_ONCE):
            some = runs[start : start + _AT_ONCE]
            if _count(ti, dag_id, some):
                found += [run for run in some if _count(ti, dag_id, [run])]
    return found


def _count(ti: Any, dag_id: str, runs: list[Run]) -> int:
    return ti.get_dr_count(dag_id=dag_id, run_ids=[run.run_id for run in runs], states=["queued", "running"])
