"""The registered model's alias `champion`, moved."""

from __future__ import annotations

from typing import TYPE_CHECKING

from include.errors import ConfigurationError
from jobs.champion.lookup import ALIAS, champion_version
from jobs.tracking import NOT_FOUND

if TYPE_CHECKING:
    from mlflow import MlflowClient


def move_alias(client: MlflowClient, model: str, version: str) -> str | None:
    """Point the alias at `version`; returns the version that it pointed at, or None.

    Raises:
        ConfigurationError: MLflow does not know that version.
    """
    from mlflow.exceptions import MlflowException

    try:
        client.get_model_version(model, version)
    except MlflowException as error:
        if error.error_code != NOT_FOUND:
            raise
        raise ConfigurationError(
            f"version {version} of {model} takes the traffic, but MLflow knows no such version: it was deleted there; "
            "release or roll back to one that is registered"
        ) from None
    former = champion_version(client, model)
    if former != version:
        client.set_registered_model_alias(model, ALIAS, version)
    return former
