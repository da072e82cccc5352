"""How a task fails: our errors as Airflow's, decisions apart from failures, and the sentence that the report shows."""

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

SENTENCE_KEY = "sentence"
"""XCom of a failed task: what it failed with. Airflow removes it when the task is tried again."""

_log = logging.getLogger(__name__)


class DecisionError(AirflowFailException):
    """Ends the task red, without a retry.

    Attributes:
        event: which decision it was.
    """

    def __init__(self, message: str, *, event: Event) -> None:
        super().__init__(message)
        self.event = event


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


def keep_sentence(function: Callable[P, R]) -> Callable[P, R]:
    """Have what a task does push the sentence that it fails with, while Airflow still takes XComs from it."""

    @wraps(function)
    def keeping(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except AirflowException as error:
            _keep(str(error))
            raise

    return keeping


def _keep(sentence: str) -> None:
    try:
        context = get_current_context()
    except RuntimeError:
        # Called by hand: there is no run that could be reported.
        return
    try:
        context["ti"].xcom_push(key=SENTENCE_KEY, value=sentence)
    except Exception as error:
        # Whatever keeps it from being kept, the task has to fail with its own reason.
        _log.warning("the report will not have this task's sentence: %s", error)
