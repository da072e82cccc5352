"""The sentence that a task fails with, kept where the run's report finds it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

from airflow.sdk import get_current_context
from airflow.sdk.exceptions import AirflowException

P = ParamSpec("P")
R = TypeVar("R")

SENTENCE_KEY = "sentence"
"""XCom of a failed task: what it failed with. Airflow removes it when the task is tried again."""

_log = logging.getLogger(__name__)


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
