"""Who needs which artifacts: the registry, the canary controller, and the runs that go on.

Where one of them cannot be asked, nothing is known to be free.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence, Set
from functools import partial
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.error import HTTPError
from urllib.request import ProxyHandler, Request, build_opener

from pydantic import ValidationError

from include.artifacts.store import Store
from include.artifacts.uses import USES
from include.errors import ConfigurationError, TryAgainError
from include.release.rollouts import ControllerState, LiveRelease
from include.retention import Held, Need, Policy
from include.specs.retention import Config
from jobs.common.registry.client import connect, retryable
from jobs.common.registry.tags import ARTIFACT_TAG, INPUT_URI_TAG
from jobs.retention.stock import name_in
from jobs.serving.canary.state.records import Records

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

_TIMEOUT = 10.0
"""Seconds; the controller answers from memory."""

_open = build_opener(ProxyHandler({})).open


def needs(config: Config, store: Store, held: Sequence[Held]) -> list[Need]:
    """All needs of the artifacts in `store`.

    Raises:
        TryAgainError: MLflow or the controller does not answer.
        ConfigurationError: MLflow is not the one that this store's models were registered in, or what answers is not
            the controller.
    """
    registrations = _registrations(store, held)
    client = connect()
    with retryable("see which versions are needed"):
        registered = [*registry_needs(client, store, config.policy, registrations.keys())]
    return [
        *controller_needs(controller_state(config), store, config.policy),
        *registered,
        Need(frozenset(registrations.values()), "the last registration of a model, which says where it was registered"),
        Need(frozenset(_noted_by(store, config)), "a run that goes on planned with it, or made it"),
    ]


def registry_needs(client: MlflowClient, store: Store, policy: Policy, models_here: Set[str]) -> Iterator[Need]:
    """Versions under an alias, and the newest of each model.

    Args:
        models_here: what was registered from this store; MLflow has to know them all.
    """
    models = {model.name: model for model in _pages(client.search_registered_models)}
    if unknown := sorted(models_here - models.keys()):
        raise ConfigurationError(
            f"MLflow knows no model {unknown[0]}, which was registered from {store.root}: it is another MLflow, or its "
            "database was lost; point MLFLOW_TRACKING_URI at the right one; nothing was deleted"
        )
    for name in models:
        # Looked up one by one: a search does not tell the aliases in every kind of MLflow.
        aliased = {str(version) for version in client.get_registered_model(name).aliases.values()}
        versions = sorted(_versions(client, name), key=lambda version: -int(version.version))
        kept = [one for rank, one in enumerate(versions) if rank < policy.keep_versions or str(one.version) in aliased]
        uris = {
            uri
            for version in kept
            for tag, uri in version.tags.items()
            if tag == ARTIFACT_TAG or tag.startswith(INPUT_URI_TAG)
        }
        yield Need(
            frozenset(found for uri in uris if (found := name_in(store, uri)) is not None),
            f"registered under an alias, or among the newest {policy.keep_versions} versions of a model",
        )


def controller_needs(state: ControllerState, store: Store, policy: Policy) -> Iterator[Need]:
    """Engines that are live, may be rolled back to, or are being released."""
    busy = {request.target for request in state.unfinished}
    for target in state.targets:
        live = [target.champion] if target.champion else []
        yield _engines(live, store, "live")
        # What goes on may go back to any of them.
        window = target.previous if target.target in busy else target.previous[: policy.keep_previous]
        yield _engines(window, store, "was live before, and can be rolled back to")
    releases = [request.release for request in state.unfinished if request.release]
    names = {name for release in releases if (name := name_in(store, release.engine.uri)) is not None}
    yield Need(frozenset(names), "a rollout that has not ended")


def controller_state(config: Config) -> ControllerState:
    """What the controller says; where none runs and its records are on this machine, what these say.

    Raises:
        TryAgainError: it does not answer. ConfigurationError: it refuses, or is something else.
        DataError: one of its records is damaged.
    """
    try:
        return _ask(config.controller_url, Path(config.token_file))
    except TryAgainError as error:
        folder = Path(config.records) if config.records else None
        if folder is None:
            raise
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


def _ask(url: str, token_file: Path) -> ControllerState:
    try:
        token = token_file.read_text(encoding="ascii").strip()
        request = Request(f"{url}/state", headers={"Authorization": f"Bearer {token}"})
        with _open(request, timeout=_TIMEOUT) as answer:
            return ControllerState.model_validate_json(answer.read())
    except HTTPError as error:
        if error.code >= 500:
            raise TryAgainError(f"the canary controller failed ({error.code}): see its log") from None
        raise ConfigurationError(
            f"the canary controller at {url} refused to say what it needs ({error.code}): start serving and Airflow "
            "from the same version, with one token; nothing was deleted"
        ) from None
    except ValidationError:
        raise ConfigurationError(
            f"what answers at {url} is not this Anemone's canary controller: start serving and Airflow from the same "
            "version; nothing was deleted"
        ) from None
    except (OSError, ValueError, HTTPException) as error:
        raise TryAgainError(
            f"the canary controller does not say at {url} what it needs ({error}): start it; nothing was deleted"
        ) from None


def _engines(releases: Sequence[LiveRelease], store: Store, reason: str) -> Need:
    uris = [live.release.engine.uri for live in releases]
    return Need(frozenset(name for uri in uris if (name := name_in(store, uri)) is not None), reason)


def _noted_by(store: Store, config: Config) -> Iterator[str]:
    keys = {run.key for run in config.going_on}
    for entry in store.listing(USES):
        parts = entry.path.split("/")
        if len(parts) == 3 and parts[2] in keys:
            yield parts[1]


def _registrations(store: Store, held: Sequence[Held]) -> dict[str, str]:
    """By the model's name that of the artifact of its last registration."""
    found = {}
    for one in sorted((one for one in held if one.job == "register"), key=lambda one: one.made):
        manifest = store.manifest(one.name)
        if manifest is not None:
            found[str(manifest.config["model"])] = one.name
    return found


def _versions(client: MlflowClient, model: str) -> Iterator[ModelVersion]:
    return _pages(partial(client.search_model_versions, f"name = {json.dumps(model)}"))


def _pages(search: Callable[..., Any]) -> Iterator[Any]:
    """All pages of one of MLflow's searches."""
    token = None
    while token is None or token:
        page = search(page_token=token)
        yield from page
        token = page.token or ""
