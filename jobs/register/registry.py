"""Register a candidate exactly once, however often and by however many it is asked for.

MLflow has no transaction over its steps and no unique key, so a version carries a key as a tag from the moment it
exists, and whoever creates one and then finds an older one with the same key removes the younger. Version numbers are
given out one after another, so two who register at once agree on which is the older.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from jobs.common.registry.aliases import CANDIDATE
from jobs.common.registry.client import EXISTS, NOT_FOUND
from jobs.common.registry.tags import ARTIFACT_TAG, DIGEST_TAG, GATES_TAG, RECIPE_TAG, RESOLVED_RECIPE_TAG, RUN_TAG

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

KEY_TAG = "anemone.key"
_OF_LAST_REGISTRATION = (RECIPE_TAG, RUN_TAG, GATES_TAG, RESOLVED_RECIPE_TAG)
"""Tags of a version that say how it is released, not what it is: that another run asked for."""


class Measurement(NamedTuple):
    """A figure at an optimizer step (0 for one that belongs to no step)."""

    name: str
    value: float
    step: int = 0


@dataclass(frozen=True)
class Candidate:
    """What is registered.

    Attributes:
        model: the registered model's name; also the experiment's.
        key: two candidates with the same key are the same.
        name: of the run.
        uri: of the merged model's artifact.
        digest: its content digest.
        timestamp: of all measurements, in ms since 1970. It is fixed, so that logging them again changes nothing.
        tags: of run and version.
    """

    model: str
    key: str
    name: str
    uri: str
    digest: str
    timestamp: int
    tags: Mapping[str, str]
    parameters: Mapping[str, str]
    measurements: Sequence[Measurement]


def register(client: MlflowClient, candidate: Candidate) -> str:
    """Return the candidate's version, created where there is none, and give it the alias unless a newer one has it."""
    _ensure_model(client, candidate.model)
    version = _deduplicate(client, candidate)
    if version is not None:
        _update_tags(client, candidate, version)
    else:
        run_id = _record_run(client, candidate)
        client.create_model_version(
            candidate.model,
            source=_source(client, candidate.uri),
            run_id=run_id,
            tags={
                **candidate.tags,
                KEY_TAG: candidate.key,
                ARTIFACT_TAG: candidate.uri,
                DIGEST_TAG: candidate.digest,
            },
        )
        version = _deduplicate(client, candidate)
        assert version is not None
        if version.run_id != run_id:
            client.delete_run(run_id)
    _point_alias(client, candidate.model, int(version.version))
    return str(version.version)


def _source(client: MlflowClient, uri: str) -> str:
    """Return what MLflow shows as the version's source.

    A server refuses a file path, as it might serve that file to anybody, so it gets a text that only people read.
    The tags say where the artifact is.
    """
    local = uri.startswith("file:") and client.tracking_uri.startswith(("http://", "https://"))
    return f"anemone:{uri.removeprefix('file://')}" if local else uri


def _ensure_model(client: MlflowClient, name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != EXISTS:
            raise


def _deduplicate(client: MlflowClient, candidate: Candidate) -> ModelVersion | None:
    """Return the oldest version with the candidate's key, or None, and delete any younger one."""
    from mlflow.exceptions import MlflowException

    versions = _versions(client, candidate.model, candidate.key)
    for duplicate in versions[1:]:
        try:
            client.delete_model_version(candidate.model, str(duplicate.version))
        except MlflowException as error:
            if error.error_code != NOT_FOUND:
                raise
    return versions[0] if versions else None


def _update_tags(client: MlflowClient, candidate: Candidate, version: ModelVersion) -> None:
    """Set a version's tags that say how this run wants it released, and add those that an earlier Anemone left out.

    Whoever changes the recipe's `engine` or `canary` and runs it again gets the same version, released in another way.
    """
    for key, value in candidate.tags.items():
        if key not in version.tags or (key in _OF_LAST_REGISTRATION and version.tags[key] != value):
            client.set_model_version_tag(candidate.model, str(version.version), key, value)


def _versions(client: MlflowClient, model: str, key: str | None = None) -> list[ModelVersion]:
    """Return the model's versions, oldest first; where a key is given, only those with it."""
    condition = f"name = '{model}'" + (f" and tags.`{KEY_TAG}` = '{key}'" if key else "")
    found: list[ModelVersion] = []
    token = None
    while token is None or token:
        page = client.search_model_versions(condition, page_token=token)
        found.extend(page)
        token = page.token or ""
    return sorted(found, key=lambda version: int(version.version))


def _record_run(client: MlflowClient, candidate: Candidate) -> str:
    """Record a finished run with the candidate's parameters, curves and figures, and return its id.

    A run that a killed predecessor left behind is completed.
    """
    from mlflow.entities import Metric, Param

    experiment = _experiment(client, candidate.model)
    started = client.search_runs(
        [experiment], f"tags.`{KEY_TAG}` = '{candidate.key}'", order_by=["attributes.start_time ASC"], max_results=1
    )
    if started:
        run_id = started[0].info.run_id
    else:
        run = client.create_run(experiment, run_name=candidate.name, tags={**candidate.tags, KEY_TAG: candidate.key})
        run_id = run.info.run_id
    parameters = [Param(key, value) for key, value in candidate.parameters.items()]
    for start in range(0, len(parameters), 100):
        client.log_batch(run_id, params=parameters[start : start + 100])
    metrics = [Metric(name, value, candidate.timestamp, step) for name, value, step in candidate.measurements]
    for start in range(0, len(metrics), 1000):
        client.log_batch(run_id, metrics=metrics[start : start + 1000])
    client.set_terminated(run_id, "FINISHED")
    return run_id


def _experiment(client: MlflowClient, name: str) -> str:
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return client.create_experiment(name)
        except MlflowException as error:
            if error.error_code != EXISTS:
                raise
        found = client.get_experiment_by_name(name)
        assert found is not None
    if found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
    return found.experiment_id


def _point_alias(client: MlflowClient, model: str, version: int) -> None:
    """Give the alias to `version`, unless there is a newer candidate: registering again never moves it back."""
    while True:
        newest = _newest_candidate(client, model)
        holder = int(client.get_registered_model(model).aliases.get(CANDIDATE, 0))
        if holder == newest or (newest > version and holder != version):
            return
        # The next round sees a candidate that was registered between this read and this write.
        client.set_registered_model_alias(model, CANDIDATE, str(newest))


def _newest_candidate(client: MlflowClient, model: str) -> int:
    """Return the newest version, not counting one that is about to be deleted as a duplicate of its key."""
    first: dict[str, int] = {}
    for version in _versions(client, model):
        if KEY_TAG in version.tags:
            first.setdefault(version.tags[KEY_TAG], int(version.version))
    return max(first.values())
