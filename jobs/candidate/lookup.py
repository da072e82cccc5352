"""What the registry says of a version that is to be released."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from include.artifacts.store import Store
from include.errors import ConfigurationError
from jobs.common.tracking import (
    COMPARED_TAG,
    GATE_TAG,
    INPUT_DIGEST_TAG,
    INPUT_URI_TAG,
    NO_CHAMPION,
    NOT_FOUND,
    RECIPE_TAG,
)
from jobs.register.registry import ALIAS

if TYPE_CHECKING:
    from mlflow import MlflowClient

BUILT_FROM = ("merged", "curated", "evaluation")
"""The inputs of a registration that its release is made from and proven with."""


def find_candidate(client: MlflowClient, model: str, version: str | None) -> dict[str, Any]:
    """{"model", "version", "champion_version", "recipe", "gate", "inputs": {name: {"uri", "digest"}}}.

    Args:
        version: None: the one under the alias `candidate`.

    Raises:
        ConfigurationError: there is no such version, or it does not say what it was made from, or that is gone.
    """
    from mlflow.exceptions import MlflowException

    try:
        if version is None:
            version = _newest(client, model)
        tags = client.get_model_version(model, version).tags
    except MlflowException as error:
        if error.error_code != NOT_FOUND:
            raise
        wanted = f"version {version} of {model}" if version else f"model {model!r}"
        raise ConfigurationError(
            f"MLflow knows no {wanted}: name a version that customize registered, or run customize"
        ) from None
    inputs = {
        name: {"uri": tags[f"{INPUT_URI_TAG}{name}"], "digest": tags[f"{INPUT_DIGEST_TAG}{name}"]}
        for name in sorted(key.removeprefix(INPUT_URI_TAG) for key in tags if key.startswith(INPUT_URI_TAG))
    }
    missing = [name for name in BUILT_FROM if name not in inputs]
    if missing or COMPARED_TAG not in tags or RECIPE_TAG not in tags:
        raise ConfigurationError(
            f"version {version} of {model} does not say where its {', '.join(missing) or 'comparison'} lies: it was "
            "registered by an earlier Anemone, or by hand; run customize with its data set again, which adds what is "
            "missing and makes nothing anew"
        )
    for name in BUILT_FROM:
        _require_there(model, version, name, **inputs[name])
    compared = tags[COMPARED_TAG]
    return {
        "model": model,
        "version": version,
        "champion_version": None if compared == NO_CHAMPION else compared,
        "recipe": tags[RECIPE_TAG],
        "gate": json.loads(tags[GATE_TAG]) if GATE_TAG in tags else None,
        "inputs": inputs,
    }


def require_fresh_comparison(candidate: dict[str, Any], champion: str | None) -> None:
    """A candidate is released only over the champion it was compared with, or over itself.

    Args:
        champion: version under the alias `champion` now.

    Raises:
        ConfigurationError: there is another champion by now.
    """
    version, compared = candidate["version"], candidate["champion_version"]
    if champion in (compared, version):
        return
    before = f"champion {compared}" if compared else "no champion"
    now = f"the champion is {champion}" if champion else "there is none"
    raise ConfigurationError(
        f"version {version} of {candidate['model']} was compared with {before}, {now} by now: run customize again, "
        "which evaluates it anew; to go back to a version that was live before, use the DAG rollback"
    )


def _newest(client: MlflowClient, model: str) -> str:
    aliases = client.get_registered_model(model).aliases
    if ALIAS not in aliases:
        raise ConfigurationError(
            f"{model} has no version under MLflow's alias {ALIAS}: run customize, or name a version"
        )
    return str(aliases[ALIAS])


def _require_there(model: str, version: str, name: str, *, uri: str, digest: str) -> None:
    store, artifact = Store.of(uri)
    manifest = store.manifest(artifact)
    if manifest is None or manifest.content_digest != digest:
        found = "is gone" if manifest is None else f"now holds other bytes ({manifest.content_digest[:12]})"
        raise ConfigurationError(
            f"version {version} of {model} was registered with {name} at {uri} ({digest[:12]}), which {found}: bring "
            "it back, or run customize again"
        )
