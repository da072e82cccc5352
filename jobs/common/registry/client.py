"""A client for the MLflow server (or SQLite file) in which this platform registers its models."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from include.errors import ConfigurationError, TryAgainError

if TYPE_CHECKING:
    from mlflow import MlflowClient

URI = "MLFLOW_TRACKING_URI"
"""Environment variable: `sqlite:////path/mlflow.db`, or `http://host:port`."""

NOT_FOUND = "RESOURCE_DOES_NOT_EXIST"
EXISTS = "RESOURCE_ALREADY_EXISTS"
UNUSABLE = "INVALID_PARAMETER_VALUE"
"""Error codes of MLflow's REST API, as `MlflowException.error_code` has them."""

_SETTINGS = {
    # Seconds a request, and requests after the first. With MLflow's own (120, 7) a server that hangs holds a job for 20
    # minutes at every call; the job's own next try waits better.
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    # It would print the server's address with the password in it.
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
"""MLflow's environment variables, where the platform sets none."""


def connect() -> MlflowClient:
    """Return a client for the server that the environment names.

    Raises:
        ConfigurationError: the environment names none, or one that MLflow cannot use.
        TryAgainError: the server does not answer within two minutes, or its database is locked or damaged.
    """
    uri = os.environ.get(URI)
    if not uri:
        raise ConfigurationError(
            f"{URI} is not set: the platform's environment has to name MLflow's database or server"
        )
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    # MLflow logs every schema migration of a new database.
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import DBAPIError, SQLAlchemyError
    from sqlalchemy.exc import TimeoutError as NoConnectionError

    try:
        client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        client.search_experiments(max_results=1)
    except (MlflowException, SQLAlchemyError, OSError, ImportError) as error:
        message = f"MLflow at {_without_password(uri)} ({URI}) does not answer: {_excerpt(error)}"
        if uri.startswith(("http://", "https://")):
            raise TryAgainError(f"{message}; start its server, or wait for it") from error
        passing = isinstance(error, DBAPIError | NoConnectionError)
        if passing or (isinstance(error, MlflowException) and error.error_code != UNUSABLE):
            raise TryAgainError(
                f"{message}; wait for whoever holds its database, or, where it is damaged, put a copy of it back"
            ) from error
        raise ConfigurationError(f"{message}; check the address") from error
    return client


@contextmanager
def retryable(doing: str) -> Iterator[None]:
    """Turn what MLflow and its database raise within into TryAgainError; the work must be safe to repeat.

    Args:
        doing: the work, as in "look the candidate up".
    """
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError) as error:
        raise TryAgainError(
            f"MLflow at {_without_password(os.environ[URI])} could not {doing}: {_excerpt(error)}; see that it "
            "runs and can write, then clear this task: repeating it is safe"
        ) from error


def _excerpt(error: BaseException) -> str:
    """Return the start of an error's message, without the SQL that was sent and without passwords."""
    message = str(error).partition("[SQL:")[0].partition("(Background on this error")[0]
    return _without_password(" ".join(message.split())[:300].rstrip("; "))


def _without_password(text: str) -> str:
    return re.sub(r"(?<=://)[^/@\s]*@", "", text)
