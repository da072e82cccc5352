"""Airflow's answer to a task that starts runs of other DAGs, at the socket of its supervisor."""

from __future__ import annotations

from typing import Any

from airflow.sdk.exceptions import AirflowRuntimeError, ErrorType
from airflow.sdk.execution_time.comms import ErrorResponse, OKResponse, TriggerDagRun


class Runs:
    """What the supervisor and the execution API make of the requests.

    Attributes:
        started: the conf of each run that there is, by DAG and run id.
        refuses: the API's message, by the id of a run that it refuses.
        asked: how many requests there were.
    """

    def __init__(self) -> None:
        self.started: dict[tuple[str, str], dict[str, Any]] = {}
        self.refuses: dict[str, str] = {}
        self.asked = 0

    def send(self, request: TriggerDagRun) -> OKResponse | ErrorResponse:
        self.asked += 1
        assert not request.reset_dag_run and request.logical_date is None
        if message := self.refuses.get(request.run_id):
            inner = {"detail": {"reason": "import_errors", "message": message}}
            detail = {"status_code": 400, "message": "400 Bad Request", "detail": inner}
            raise AirflowRuntimeError(ErrorResponse(error=ErrorType.API_SERVER_ERROR, detail=detail))
        if (request.dag_id, request.run_id) in self.started:
            return ErrorResponse(error=ErrorType.DAGRUN_ALREADY_EXISTS)
        self.started[request.dag_id, request.run_id] = dict(request.conf or {})
        return OKResponse(ok=True)


def asset_context(*triggering: Any, later: list[Any] | None = None) -> dict[str, Any]:
    """The context of a run that `triggering` events started; `later`: all that came since, by default the same."""
    events = later or list(triggering)

    class Inlet:
        def after(self, moment: str) -> list[Any]:
            return [event for event in events if event.timestamp.isoformat() >= moment]

    found = {"asset": list(triggering)} if triggering else {}
    return {"triggering_asset_events": found, "inlet_events": {"asset": Inlet()}}
