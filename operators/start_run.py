"""Starts a run of another DAG, unless it exists."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from include.errors import TryAgainError


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
        raise TryAgainError(f"the run {run_id} of {dag_id} was not started: {_reason(error)}") from None
    if not isinstance(answer, ErrorResponse):
        return True
    if answer.error == ErrorType.DAGRUN_ALREADY_EXISTS:
        return False
    raise TryAgainError(f"the run {run_id} of {dag_id} was not started: {answer.error.value} {answer.detail}")


def _reason(error: Any) -> str:
    """Return Airflow's own words."""
    detail = error.error.detail or {}
    inner = detail.get("detail")
    # The API server's answer as FastAPI sends it: {"detail": {"reason", "message"}}.
    inner = inner.get("detail", inner) if isinstance(inner, dict) else inner
    message = inner.get("message") if isinstance(inner, dict) else inner
    return str(message or detail.get("message") or error)
