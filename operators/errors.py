"""How a task fails: the one mapping of our errors to Airflow's, decisions, and the message that the report shows."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import ParamSpec, TypeVar

from airflow.sdk import get_current_context
from airflow.sdk.exceptions import AirflowException, AirflowFailException

from include.errors import AnemoneError, TryAgainError
from include.job_plan import JobFailedError
from include.notifications import Event

P = ParamSpec("P")
R = TypeVar("R")

FAILURE_MESSAGE_KEY = "sentence"
"""XCom of a failed task: its error message. Airflow removes it when the task is tried again. The key is version 0.1's:
a run may have begun before an upgrade."""

_log = logging.getLogger(__name__)


class DecisionError(AirflowFailException):
    """A decision that ends the task red, without a retry.

    Attributes:
        event: the decision, as notifications call it.
    """

    def __init__(self, message: str, *, event: Event) -> None:
        super().__init__(message)
        self.event = event


@contextmanager
def as_airflow_errors() -> Iterator[None]:
    """Turn our errors into the exceptions that make Airflow try again, or not. Also a decorator.

    Raises:
        AirflowException: trying again can help.
        AirflowFailException: it cannot; the task fails without another try.
    """
    try:
        yield
    except JobFailedError as error:
        raise (AirflowException if error.retryable else AirflowFailException)(str(error)) from None
    except TryAgainError as error:
        raise AirflowException(str(error)) from None
    except AnemoneError as error:
        raise AirflowFailException(str(error)) from None


def record_failure(function: Callable[P, R]) -> Callable[P, R]:
    """Make what a task does raise Airflow's exceptions (`as_airflow_errors`), and push their message for the report.

    The message is pushed before the exception leaves the task: afterwards Airflow takes no XCom from it.
    """

    @wraps(function)
    def recording(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            with as_airflow_errors():
                return function(*args, **kwargs)
        except AirflowException as error:
            _push(str(error))
            raise

    return recording


def _push(message: str) -> None:
    try:
        context = get_current_context()
    except RuntimeError:
        # Called by hand: there is no run that could be reported.
        return
    try:
        context["ti"].xcom_push(key=FAILURE_MESSAGE_KEY, value=message)
    except Exception as error:
        # The task has to fail with its own reason, whatever keeps the message from the database.
        _log.warning("the report will lack this task's error message: %s", error)
