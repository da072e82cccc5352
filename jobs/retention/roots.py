"""The roots of a store: what the registry, the canary controller and the unfinished runs need.

Where one of them does not answer, the job fails: nothing is known to be garbage.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence, Set
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from include.artifacts.store import USES, Store
from include.errors import ConfigurationError, TryAgainError
from include.release.controller_client import ControllerClient
from include.release.rollouts import ControllerState, LiveRelease
from include.retention import Policy, RootSet, StoredArtifact
from include.specs.retention import Config
from jobs.common.registry.client import connect, retryable
from jobs.common.registry.tags import ARTIFACT_TAG, INPUT_URI_TAG, recipe_address
from jobs.retention.inventory import name_in
from jobs.serving.canary.state.records import Records

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion


def find_roots(config: Config, store: Store, artifacts: Sequence[StoredArtifact]) -> list[RootSet]:
    """Return all roots of `store`, which holds `artifacts`.

    Raises:
        TryAgainError: MLflow or the controller does not answer.
        ConfigurationError: MLflow is not the one that this store's models were registered in, or what answers is not
            the controller.
    """
    registrations = _registrations(store, artifacts)
    client = connect()
    with retryable("see which versions are needed"):
        registered = [*registry_roots(client, store, config.policy, registrations.keys())]
    return [
        *controller_roots(controller_state(config), store, config.policy),
        *registered,
        RootSet(
            frozenset(registrations.values()), "the last registration of a model, which says where it was registered"
        ),
        RootSet(frozenset(_noted_by(store, config)), "an unfinished run planned with it or made it"),
    ]


def registry_roots(client: MlflowClient, store: Store, policy: Policy, models_here: Set[str]) -> Iterator[RootSet]:
    """Yield the versions under an alias, and the newest of each model.

    Args:
        models_here: what was registered from this store; MLflow has to know them all.

    Raises:
        ConfigurationError: it does not.
    """
    models = {model.name: model for model in _pages(client.search_registered_models)}
    if unknown := sorted(models_here - models.keys()):
        raise ConfigurationError(
            f"MLflow knows no model {unknown[0]}, which was registered from {store.root}: it is another MLflow, or its "
            "database was lost; point MLFLOW_TRACKING_URI at the right one; nothing was deleted"
        )
    for name in models:
        # Looked up one by one: not every registry backend returns aliases from a search.
        aliased = {str(version) for version in client.get_registered_model(name).aliases.values()}
        versions = sorted(_versions(client, name), key=lambda version: -int(version.version))
        kept = [
            version
            for rank, version in enumerate(versions)
            if rank < policy.keep_versions or str(version.version) in aliased
        ]
        uris = {
            uri
            for version in kept
            for tag, uri in version.tags.items()
            if tag == ARTIFACT_TAG or tag.startswith(INPUT_URI_TAG)
        }
        uris |= {address.uri for version in kept if (address := recipe_address(version.tags)) is not None}
        yield RootSet(
            frozenset(found for uri in uris if (found := name_in(store, uri)) is not None),
            f"registered under an alias, or among the newest {policy.keep_versions} versions of a model",
        )


def controller_roots(state: ControllerState, store: Store, policy: Policy) -> Iterator[RootSet]:
    """Yield the engines that are live, may be rolled back to, or are being released."""
    busy = {request.target for request in state.unfinished}
    for target in state.targets:
        live = [target.champion] if target.champion else []
        yield _engines(live, store, "live")
        # An unfinished rollback may go back to any of them.
        window = target.previous if target.target in busy else target.previous[: policy.keep_previous]
        yield _engines(window, store, "was live before, and can be rolled back to")
    releases = [request.release for request in state.unfinished if request.release]
    names = {name for release in releases if (name := name_in(store, release.engine.uri)) is not None}
    yield RootSet(frozenset(names), "a rollout that has not ended")


def controller_state(config: Config) -> ControllerState:
    """Return the controller's state; where none runs, and its records are on this machine, the state in these.

    Raises:
        TryAgainError: it does not answer. ConfigurationError: it refuses, or is something else.
        DataError: one of its records is damaged.
    """
    try:
        return ControllerClient(config.controller_url, config.token_file).state()
    except ConfigurationError as error:
        raise ConfigurationError(f"{error}; nothing was deleted") from None
    except TryAgainError as error:
        if config.records is None:
            raise TryAgainError(f"{error}; nothing was deleted") from None
        folder = Path(config.records)
        if not folder.is_dir():
            return ControllerState()
        records = Records(folder)
        try:
            records.lock()
            return records.state()
        except ConfigurationError:
            raise TryAgainError(f"{error}, although it runs; nothing was deleted") from None
        finally:
            records.close()


def _engines(releases: Sequence[LiveRelease], store: Store, reason: str) -> RootSet:
    uris = [live.release.engine.uri for live in releases]
    return RootSet(frozenset(name for uri in uris if (name := name_in(store, uri)) is not None), reason)


def _noted_by(store: Store, config: Config) -> Iterator[str]:
    """Yield the names that an unfinished run has noted a use of."""
    keys = {run.key for run in config.unfinished_runs}
    for entry in store.listing(USES):
        parts = entry.path.split("/")
        if len(parts) == 3 and parts[2] in keys:
            yield parts[1]


def _registrations(store: Store, artifacts: Sequence[StoredArtifact]) -> dict[str, str]:
    """Return by each model's name the artifact of its last registration."""
    found = {}
    registrations = [artifact for artifact in artifacts if artifact.job == "register"]
    for registration in sorted(registrations, key=lambda artifact: artifact.created):
        manifest = store.manifest(registration.name)
        if manifest is not None:
            found[str(manifest.config["model"])] = registration.name
    return found


def _versions(client: MlflowClient, model: str) -> Iterator[ModelVersion]:
    return _pages(partial(client.search_model_versions, f"name = {json.dumps(model)}"))


def _pages(search: Callable[..., Any]) -> Iterator[Any]:
    """Yield from all pages of one of MLflow's searches."""
    token = None
    while token is None or token:
        page = search(page_token=token)
        yield from page
        token = page.token or ""
