"""The registered model's alias `champion`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from include.errors import ConfigurationError
from jobs.common.tracking import ARTIFACT_TAG, DIGEST_TAG, NOT_FOUND

if TYPE_CHECKING:
    from mlflow import MlflowClient

ALIAS = "champion"


def champion_version(client: MlflowClient, model: str) -> str | None:
    """The version under the alias; None where the model or its alias does not exist yet."""
    from mlflow.exceptions import MlflowException

    try:
        aliases = client.get_registered_model(model).aliases
    except MlflowException as error:
        if error.error_code != NOT_FOUND:
            raise
        return None
    return str(aliases[ALIAS]) if ALIAS in aliases else None


def find_champion(client: MlflowClient, model: str) -> dict[str, Any]:
    """{"model", "version", "artifact": {"uri", "digest"}}; the last two are None where there is no champion.

    Raises:
        ConfigurationError: the alias points to a version that Anemone did not register.
    """
    version = champion_version(client, model)
    if version is None:
        return {"model": model, "version": None, "artifact": None}
    tags = client.get_model_version(model, version).tags
    if ARTIFACT_TAG not in tags or DIGEST_TAG not in tags:
        raise ConfigurationError(
            f"the champion of {model}, version {version}, lacks the tags {ARTIFACT_TAG} and {DIGEST_TAG}: "
            "move the alias champion in MLflow to a version that register made"
        )
    return {
        "model": model,
        "version": version,
        "artifact": {"uri": tags[ARTIFACT_TAG], "digest": tags[DIGEST_TAG]},
    }
