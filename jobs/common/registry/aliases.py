"""The aliases of a registered model that Anemone moves."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jobs.common.registry.client import NOT_FOUND

if TYPE_CHECKING:
    from mlflow import MlflowClient

CANDIDATE = "candidate"
"""The newest version that passed its evaluation."""

CHAMPION = "champion"
"""The version that takes the traffic."""


def champion_version(client: MlflowClient, model: str) -> str | None:
    """Return the version under the alias `champion`, or None where the model or its alias does not exist yet."""
    from mlflow.exceptions import MlflowException

    try:
        aliases = client.get_registered_model(model).aliases
    except MlflowException as error:
        if error.error_code != NOT_FOUND:
            raise
        return None
    return str(aliases[CHAMPION]) if CHAMPION in aliases else None
