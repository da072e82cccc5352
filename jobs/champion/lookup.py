"""The champion and its artifact, as the registry has them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from include.errors import ConfigurationError
from jobs.common.registry.aliases import champion_version
from jobs.common.registry.tags import ARTIFACT_TAG, DIGEST_TAG

if TYPE_CHECKING:
    from mlflow import MlflowClient


def find_champion(client: MlflowClient, model: str) -> dict[str, Any]:
    """Return the version under the alias `champion`, and its artifact.

    Returns:
        {"model", "version", "artifact": {"uri", "digest"}}; the last two are None where there is no champion.

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
