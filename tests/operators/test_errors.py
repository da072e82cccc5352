from __future__ import annotations

import pytest
from airflow.sdk.definitions.context import Context
from airflow.sdk.exceptions import AirflowException, AirflowFailException
from airflow.sdk.execution_time.context import set_current_context

from include.errors import ConfigurationError, TryAgainError
from include.job_plan import JobFailedError
from operators.errors import FAILURE_MESSAGE_KEY, DecisionError, as_airflow_errors, record_failure


class TaskInstance:
    """Takes XComs, or not."""

    def __init__(self, refuses: bool = False) -> None:
        self.pushed: dict[str, str] = {}
        self._refuses = refuses

    def xcom_push(self, key: str, value: str) -> None:
        if self._refuses:
            raise ConnectionError("the API server is away")
        self.pushed[key] = value


@record_failure
def work(fails: bool) -> str:
    if fails:
        raise AirflowFailException("row 3 is not JSON: mend it")
    return "done"


def test_a_failure_leaves_its_sentence_and_stays_what_it_is():
    ti = TaskInstance()
    with set_current_context(Context(ti=ti)), pytest.raises(AirflowFailException, match="row 3"):
        work(True)
    assert ti.pushed == {FAILURE_MESSAGE_KEY: "row 3 is not JSON: mend it"}


def test_success_leaves_nothing():
    ti = TaskInstance()
    with set_current_context(Context(ti=ti)):
        assert work(False) == "done"
    assert ti.pushed == {}


@pytest.mark.parametrize("inside", [True, False])
def test_the_reason_is_never_lost_to_what_cannot_be_kept(inside):
    if inside:
        with set_current_context(Context(ti=TaskInstance(refuses=True))), pytest.raises(AirflowFailException):
            work(True)
    else:
        with pytest.raises(AirflowFailException):
            work(True)


@pytest.mark.parametrize(
    ("error", "becomes"),
    [
        (TryAgainError("x"), AirflowException),
        (JobFailedError("x", retryable=True), AirflowException),
        (JobFailedError("x", retryable=False), AirflowFailException),
        (ConfigurationError("x"), AirflowFailException),
        (DecisionError("x", event="gate_failed"), DecisionError),
        (KeyError("x"), KeyError),
    ],
)
def test_each_error_becomes_the_exception_that_airflow_acts_on(error, becomes):
    @as_airflow_errors()
    def fail():
        raise error

    ti = TaskInstance()
    with pytest.raises(becomes) as raised:
        fail()
    assert type(raised.value) is becomes
    with set_current_context(Context(ti=ti)), pytest.raises(becomes):
        record_failure(fail)()
    assert ti.pushed == ({FAILURE_MESSAGE_KEY: "x"} if issubclass(becomes, AirflowException) else {})
