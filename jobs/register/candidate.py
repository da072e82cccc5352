"""A candidate, as the artifacts of its run describe it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from include.artifacts.manifest import Manifest
from include.artifacts.naming import digest
from include.artifacts.store import Store
from include.errors import ArtifactError, ConfigurationError
from include.specs.base import Artifact
from include.specs.register import Spec
from jobs.common.registry.tags import (
    COMPARED_TAG,
    GATES_TAG,
    INPUT_DIGEST_TAG,
    INPUT_URI_TAG,
    NO_CHAMPION,
    RECIPE_TAG,
    RESOLVED_RECIPE_TAG,
    RUN_TAG,
    RecipeAddress,
)
from jobs.register.registry import Candidate, Measurement

_STAGES = ("curated", "tuned", "merged", "evaluation")
_LONGEST_PARAMETER = 500
"""Characters; a longer value (a chat template) is given by its digest."""


def describe(spec: Spec) -> tuple[Candidate, dict[str, Any]]:
    """Return the candidate, and the champion record that it was compared with.

    Raises:
        ArtifactError: an input is gone, or was replaced.
        ConfigurationError: the evaluation is of another model, or was made against another champion.
    """
    inputs = {name: artifact for name, artifact in spec.inputs if artifact is not None}
    manifests = {name: _manifest(artifact) for name, artifact in inputs.items()}
    store, name = Store.of(spec.inputs.champion.uri)
    champion = store.read_json(name, "champion.json")
    _require_same_comparison(spec, manifests["evaluation"], champion)
    version = champion["version"]
    merged = spec.inputs.merged
    candidate = Candidate(
        model=spec.config.model,
        key=digest([merged.digest, spec.inputs.evaluation.digest, version]),
        name=manifests["merged"].name,
        uri=merged.uri,
        digest=merged.digest,
        timestamp=int(manifests["tuned"].provenance.finished.timestamp() * 1000),
        tags={
            RECIPE_TAG: spec.config.recipe,
            RUN_TAG: spec.config.run_id,
            **_recipe_tag(spec),
            COMPARED_TAG: version or NO_CHAMPION,
            GATES_TAG: json.dumps(spec.config.gates),
            **{f"{INPUT_DIGEST_TAG}{name}": artifact.digest for name, artifact in inputs.items()},
            **{f"{INPUT_URI_TAG}{name}": artifact.uri for name, artifact in inputs.items()},
        },
        parameters={
            key: value for stage in _STAGES for key, value in _flattened(manifests[stage].config, manifests[stage].job)
        },
        measurements=[
            *(
                Measurement(f"{manifests[stage].job}.{key}", float(value))
                for stage in _STAGES
                for key, value in manifests[stage].metrics.items()
                if isinstance(value, int | float) and not isinstance(value, bool)
            ),
            *_curve(spec.inputs.tuned, manifests["tuned"], "loss.jsonl", "train"),
            *_curve(spec.inputs.tuned, manifests["tuned"], "validation.jsonl", "validation"),
        ],
    )
    return candidate, champion


def _recipe_tag(spec: Spec) -> dict[str, str]:
    recipe = spec.config.resolved_recipe
    if recipe is None:
        return {}
    address = RecipeAddress(uri=f"{spec.output.store}/{spec.output.name}", digest=digest(recipe))
    return {RESOLVED_RECIPE_TAG: address.model_dump_json()}


def _manifest(artifact: Artifact) -> Manifest:
    store, name = Store.of(artifact.uri)
    manifest = store.manifest(name)
    if manifest is None or manifest.content_digest != artifact.digest:
        raise ArtifactError(
            f"{artifact.uri} {'does not exist' if manifest is None else 'now holds other bytes than planned'}: "
            "clear the task that makes it, and those after it"
        )
    return manifest


def _require_same_comparison(spec: Spec, evaluation: Manifest, champion: Mapping[str, Any]) -> None:
    evaluated = evaluation.inputs.get("tuned")
    if evaluated is None or evaluated.digest != spec.inputs.merged.digest:
        raise ConfigurationError(
            f"{spec.inputs.evaluation.uri} evaluated another model than {spec.inputs.merged.uri}: "
            "clear the evaluation's task and those after it"
        )
    compared = evaluation.inputs.get("champion")
    if compared is None or compared.digest != spec.inputs.champion.digest:
        raise ConfigurationError(
            f"{spec.inputs.evaluation.uri} was made against another champion of {champion['model']} than version "
            f"{champion['version']}: clear the champion's task and those after it"
        )


def _flattened(value: Any, name: str) -> Iterator[tuple[str, str]]:
    """Yield a stage's configuration as flat parameters: {"lora": {"dim": 16}} as ("finetune.lora.dim", "16")."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _flattened(item, f"{name}.{key}")
        return
    text = value if isinstance(value, str) else json.dumps(value)
    yield name, text if len(text) <= _LONGEST_PARAMETER else f"sha256:{digest(value)}"


def _curve(tuned: Artifact, manifest: Manifest, file: str, prefix: str) -> Iterator[Measurement]:
    if all(entry.path != file for entry in manifest.files):
        return
    store, name = Store.of(tuned.uri)
    for line in store.read_bytes(name, file).decode().splitlines():
        point = json.loads(line)
        step = point.pop("step")
        for key, value in point.items():
            if isinstance(value, int | float):
                yield Measurement(f"{prefix}.{key}", float(value), step)
