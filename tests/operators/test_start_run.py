"""What a person reads where Airflow does not start a run: its own words, and what happens next."""

from __future__ import annotations

import re

import pytest
from airflow.sdk.exceptions import AirflowRuntimeError, ErrorType
from airflow.sdk.execution_time import task_runner
from airflow.sdk.execution_time.comms import ErrorResponse

from include.errors import TryAgainError
from operators.start_run import start_run

ANSWERS = {
    "Dag has import errors": {"message": "400 Bad Request", "detail": {"detail": {"message": "Dag has import errors"}}},
    "Not Found": {"message": "404", "detail": {"detail": "Not Found"}},
    "502 Bad Gateway": {"status_code": 502, "message": "502 Bad Gateway", "detail": None},
    "API_SERVER_ERROR": None,
}


@pytest.mark.parametrize("raised", [True, False])
@pytest.mark.parametrize("reason", ANSWERS)
def test_a_start_that_is_refused_says_why_and_what_happens_next(monkeypatch, reason, raised):
    answer = ErrorResponse(error=ErrorType.API_SERVER_ERROR, detail=ANSWERS[reason])

    class Supervisor:
        def send(self, _request):
            if raised:
                raise AirflowRuntimeError(answer)
            return answer

    monkeypatch.setattr(task_runner, "SUPERVISOR_COMMS", Supervisor(), raising=False)
    with pytest.raises(TryAgainError) as error:
        start_run("customize", "arrival__1", {})
    assert re.fullmatch(
        rf"the run arrival__1 of customize was not started: {reason}; the clock tries again within five minutes: "
        r"see the import errors of customize in Airflow's web UI if it fails again",
        str(error.value),
    )
