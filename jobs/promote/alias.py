"""Move the registered model's alias `champion`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from include.errors import ConfigurationError
from jobs.common.registry.aliases import CHAMPION, champion_version
from jobs.common.registry.client import NOT_FOUND

if TYPE_CHECKING:
    from mlflow import MlflowClient


def follow_traffic(client: MlflowClient, model: str, live: Callable[[], str]) -> tuple[str, str | None]:
    """Point the alias at the version that is live.

    The live version is read again after each move: it may have changed meanwhile, and whoever moves the alias last
    must leave it where the traffic is.

    Args:
        live: returns the version that takes the traffic now.

    Returns:
        (that version, the one that the alias pointed at before, or None).

    Raises:
        ConfigurationError: MLflow does not know the live version.
    """
    version = live()
    former = move_alias(client, model, version)
    while (now := live()) != version:
        version = now
        move_alias(client, model, version)
    return version, former


def move_alias(client: MlflowClient, model: str, version: str) -> str | None:
    """Point the alias at `version`, and return the version that it pointed at before, or None.

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
        client.set_registered_model_alias(model, CHAMPION, version)
    return former
