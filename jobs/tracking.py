"""The MLflow server (or SQLite file) that this platform registers its models in."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from include.errors import ConfigurationError, TryAgainError

if TYPE_CHECKING:
    from mlflow import MlflowClient

URI = "MLFLOW_TRACKING_URI"
"""Environment variable: `sqlite:////path/mlflow.db`, or `http://host:port`."""

ARTIFACT_TAG = "anemone.artifact"
"""Model version tag: URI of the merged model's artifact."""

DIGEST_TAG = "anemone.digest"
"""Model version tag: content digest of the merged model's artifact."""

RECIPE_TAG = "anemone.recipe"
"""Model version tag: the recipe that made it."""

COMPARED_TAG = "anemone.champion_version"
"""Model version tag: version of the champion that it was compared with; `NO_CHAMPION` where there was none."""

NO_CHAMPION = "none"

INPUT_DIGEST_TAG = "anemone.input."
"""Model version tags, followed by an input's name: its content digest."""

INPUT_URI_TAG = "anemone.input_uri."
"""Model version tags, followed by an input's name: its artifact's URI."""

NOT_FOUND = "RESOURCE_DOES_NOT_EXIST"
EXISTS = "RESOURCE_ALREADY_EXISTS"
UNUSABLE = "INVALID_PARAMETER_VALUE"


def connect() -> MlflowClient:
    """A client for the server that the environment names.

    Raises:
        ConfigurationError: it names none, or one that MLflow cannot use.
        TryAgainError: the server does not answer, or its database is locked.
    """
    uri = os.environ.get(URI)
    if not uri:
        raise ConfigurationError(
            f"{URI} is not set: the platform's environment has to name MLflow's database or server"
        )
    # MLflow tells of every schema migration of a new database.
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import InterfaceError, OperationalError, SQLAlchemyError
    from sqlalchemy.exc import TimeoutError as NoConnectionError

    try:
        client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        client.search_experiments(max_results=1)
    except (MlflowException, SQLAlchemyError, FileNotFoundError, NotADirectoryError, PermissionError) as error:
        message = f"MLflow at {URI} does not answer ({' '.join(str(error).split())[:200]})"
        if uri.startswith(("http://", "https://")):
            raise TryAgainError(f"{message}: start its server, or wait for it") from error
        passing = isinstance(error, OperationalError | InterfaceError | NoConnectionError)
        if passing or (isinstance(error, MlflowException) and error.error_code != UNUSABLE):
            raise TryAgainError(f"{message}: wait for whoever holds its database") from error
        raise ConfigurationError(f"{message}: check the address") from error
    return client


@contextmanager
def worth_another_try(doing: str) -> Iterator[None]:
    """Make MLflow's own trouble a TryAgainError; the work within must be safe to do again.

    Args:
        doing: what it should have let us do, as in "look the candidate up".
    """
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError) as error:
        message = " ".join(str(error).split())[:300]
        raise TryAgainError(f"MLflow did not let us {doing}: {message}; doing it again is safe") from error
