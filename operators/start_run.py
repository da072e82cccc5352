"""Starts a run of another DAG, unless it exists."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from include.errors import TryAgainError

if TYPE_CHECKING:
    from airflow.sdk.execution_time.comms import ErrorResponse


def start_run(dag_id: str, run_id: str, conf: Mapping[str, Any]) -> bool:
    """Start a run of another DAG from within a task; return False where there is one of this id already.

    This is the request that TriggerDagRunOperator has the task runner send, without ending the task: a task can start
    many runs and hears of each. The run has no logical date, as Airflow takes a second run of the same one for the run
    itself; and a run that exists is never reset, as a request that is sent again after a lost answer would reset it.

    Raises:
        TryAgainError: Airflow's API server did not take it.
    """
    from airflow.sdk.exceptions import AirflowRuntimeError, ErrorType
    from airflow.sdk.execution_time import task_runner
    from airflow.sdk.execution_time.comms import ErrorResponse, TriggerDagRun

    request = TriggerDagRun(dag_id=dag_id, run_id=run_id, conf=dict(conf), reset_dag_run=False)
    try:
        answer = task_runner.SUPERVISOR_COMMS.send(request)
    except AirflowRuntimeError as error:
        answer = error.error
    if not isinstance(answer, ErrorResponse):
        return True
    if answer.error == ErrorType.DAGRUN_ALREADY_EXISTS:
        return False
    raise TryAgainError(
        f"the run {run_id} of {dag_id} was not started: {_reason(answer)}; the clock tries again within five minutes: "
        f"see the import errors of {dag_id} in Airflow's web UI if it fails again"
    )


def _reason(answer: ErrorResponse) -> str:
    """Return Airflow's own words: the innermost of {"message", "detail": {"detail": {"reason", "message"}}}."""
    words: Any = answer.error.value
    inner: Any = answer.detail
    while isinstance(inner, dict):
        words = inner.get("message") or words
        inner = inner.get("detail")
    return str(inner or words)
