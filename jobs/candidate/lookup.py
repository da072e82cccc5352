"""A candidate, as the registry and the artifacts that it names describe it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from include.artifacts.naming import digest as digest_of
from include.artifacts.store import Store
from include.errors import ArtifactError, ConfigurationError
from jobs.common.registry.aliases import CANDIDATE
from jobs.common.registry.artifacts import artifact_problem
from jobs.common.registry.client import NOT_FOUND
from jobs.common.registry.tags import (
    COMPARED_TAG,
    GATES_TAG,
    INPUT_DIGEST_TAG,
    INPUT_URI_TAG,
    NO_CHAMPION,
    OLD_GATE_TAG,
    RECIPE_TAG,
    RESOLVED_RECIPE_TAG,
    recipe_address,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient

BUILT_FROM = ("merged", "curated", "evaluation")
"""The inputs of a registration from which its release is made, and with which it is verified."""


def find_candidate(
    client: MlflowClient, model: str, version: str | None, registration: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return a candidate with what it was made from, every artifact checked to be there.

    Args:
        version: None stands for the one under the alias `candidate`.
        registration: the record of one of this version's, whose recipe is wanted; None: that of the last one.

    Returns:
        {"model", "version", "champion_version", "recipe", "resolved_recipe", "gates", "inputs": {name: {"uri",
        "digest"}}}; the resolved recipe is None where the version was registered before that was kept.

    Raises:
        ConfigurationError: there is no such version, its tags do not say what it was made from, an artifact of
            these is gone, or `registration` is of another version.
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
            f"version {version} of {model} does not say where its {', '.join(missing) or 'comparison'} is: it was "
            "registered by an earlier Anemone, or by hand; run customize with its data set again, which adds what is "
            "missing and repeats nothing"
        )
    for name in BUILT_FROM:
        _require_there(model, version, name, **inputs[name])
    recipe = _recipe_of(registration, model, version) if registration else _last_recipe(model, version, tags)
    compared = tags[COMPARED_TAG]
    return {
        "model": model,
        "version": version,
        "champion_version": None if compared == NO_CHAMPION else compared,
        "recipe": tags[RECIPE_TAG] if recipe is None else recipe["name"],
        "resolved_recipe": recipe,
        "gates": _gates(tags),
        "inputs": inputs,
    }


def _last_recipe(model: str, version: str, tags: Mapping[str, str]) -> dict[str, Any] | None:
    """Return the recipe of the version's last registration; None where it was registered before that was kept.

    Raises:
        ConfigurationError: it is not where the version's tag says, or is another.
    """
    if RESOLVED_RECIPE_TAG not in tags:
        return None
    problem = "which is no address"
    if (address := recipe_address(tags)) is not None:
        store, name = Store.of(address.uri)
        try:
            recipe: dict[str, Any] = store.read_json(name, "candidate.json")["resolved_recipe"]
            if digest_of(recipe) == address.digest:
                return recipe
            problem = "which now holds another one"
        except (ArtifactError, KeyError) as error:
            problem = f"which cannot be read ({error})"
    raise ConfigurationError(
        f"version {version} of {model} was registered with its recipe at {tags[RESOLVED_RECIPE_TAG]}, {problem}: bring "
        "it back, or run customize with its data set again, which registers it anew and repeats nothing"
    )


def _recipe_of(registration: Mapping[str, Any], model: str, version: str) -> dict[str, Any] | None:
    """Return the recipe that a registration holds. Raises ConfigurationError where that is of another version."""
    if (registration["model"], registration["version"]) != (model, version):
        raise ConfigurationError(
            f"the registration is of version {registration['version']} of {registration['model']}, not of version "
            f"{version} of {model}: release that version, or name no registration"
        )
    recipe: dict[str, Any] | None = registration.get("resolved_recipe")
    return recipe


def _gates(tags: Mapping[str, str]) -> dict[str, Any]:
    """Return the limits by gate; none where the version was registered before these were kept."""
    if GATES_TAG in tags:
        return json.loads(tags[GATES_TAG])
    return {"evaluation": json.loads(tags[OLD_GATE_TAG])} if OLD_GATE_TAG in tags else {}


def require_fresh_comparison(candidate: dict[str, Any], champion: str | None) -> None:
    """Refuse a candidate that was compared with another champion than the present one, unless it is that one.

    Args:
        champion: the version under the alias `champion` now.

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
    if CANDIDATE not in aliases:
        raise ConfigurationError(
            f"{model} has no version under MLflow's alias {CANDIDATE}: run customize, or name a version"
        )
    return str(aliases[CANDIDATE])


def _require_there(model: str, version: str, name: str, *, uri: str, digest: str) -> None:
    if problem := artifact_problem(uri, digest):
        raise ConfigurationError(
            f"version {version} of {model} was registered with {name} at {uri} ({digest[:12]}), which {problem}: bring "
            "it back, or run customize again"
        )
