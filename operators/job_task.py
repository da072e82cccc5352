"""What every task that runs a job does around it, wherever the job runs: plan, reuse, tell Airflow how it ended."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from airflow.sdk.exceptions import AirflowException, AirflowFailException

from include.artifacts.store import Store
from include.artifacts.uses import Run
from include.errors import AnemoneError, TryAgainError
from include.events import format_event
from operators.plan import JobFailedError, JobPlan

if TYPE_CHECKING:
    from collections.abc import Mapping

    from airflow.sdk import Context

    from include.artifacts.manifest import Manifest


class JobTask(Protocol):
    """An operator that runs one job: its section of a resolved recipe, and artifact URI by input name."""

    task_id: str
    dag_id: str
    log: Any
    outlets: Any
    section: Mapping[str, Any] | None
    inputs: Mapping[str, str | None]


def plan_job(task: JobTask, context: Context, store: Store, *, image: str | None = None) -> JobPlan:
    """The task's job, validated and named; see `JobPlan.prepare` for what it raises."""
    assert task.section is not None
    return JobPlan.prepare(
        task.section["job"],
        config=task.section["config"],
        inputs=task.inputs,
        store=store,
        refresh=context["run_id"] if task.task_id in context["params"].get("refresh", ()) else "",
        run=Run(dag_id=task.dag_id, run_id=context["run_id"]),
        image=image,
    )


def reused(task: JobTask, plan: JobPlan) -> Manifest | None:
    """What the job made before, where it did; the log says so, and how to have it made anew."""
    manifest = plan.committed()
    if manifest is not None:
        task.log.info(
            "reused artifact=%s (made before from the same code, configuration and data; "
            "the Param refresh=[%r] makes it anew)",
            plan.uri,
            task.task_id,
        )
    return manifest


def announce(task: JobTask, context: Context, plan: JobPlan, manifest: Manifest) -> str:
    """Log what was made and tell the task's outlets; returns its URI, which is what the task returns."""
    task.log.info(format_event("artifact", {"uri": plan.uri, "files": len(manifest.files), **manifest.metrics}))
    for outlet in task.outlets:
        context["outlet_events"][outlet].extra = {"artifact": plan.uri, "metrics": manifest.metrics}
    return plan.uri


@contextmanager
def as_airflow_errors() -> Iterator[None]:
    """Turn what a job can fail with into the exception that makes Airflow try again, or not."""
    try:
        yield
    except JobFailedError as error:
        raise (AirflowException if error.retryable else AirflowFailException)(str(error)) from None
    except TryAgainError as error:
        raise AirflowException(str(error)) from None
    except AnemoneError as error:
        raise AirflowFailException(str(error)) from None
