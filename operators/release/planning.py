"""Plans of `release` and `rollback`, and the runs that announced candidates start."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from include.announcements import Announcements
from include.artifacts.uses import Run
from include.errors import ArtifactError
from include.platforms import current_platform
from include.recipes import override, resolve
from include.recipes.resolved import ResolvedRecipe, Section
from include.release.candidates import AnnouncedCandidate, release_run_id
from operators.announced import AnnouncedRun, start_announced_runs
from operators.errors import record_failure
from operators.store import platform_store, store_of

if TYPE_CHECKING:
    from airflow.sdk import Context

_log = logging.getLogger(__name__)

RELEASE = "release"

_STAGES = ("engine",)
"""The stages of `release` that a recipe configures."""

_OVERRIDABLE = (*_STAGES, "canary", "sizes", "model", "max_tokens", "evaluate")
"""First parts of the keys that change a release: the engine takes some from the evaluation."""


def start_releases(context: Context) -> list[str]:
    """Start the run of `release` of every registered candidate that has none.

    Returns:
        Ids of the runs that were started.

    Raises:
        AirflowFailException, AirflowException: as `start_announced_runs`.
    """
    return start_announced_runs(
        context,
        Announcements(platform_store(current_platform()), AnnouncedCandidate),
        run_of=_release,
        from_event=_announced_by,
    )


@record_failure
def planned_release(context: Context) -> dict[str, Any]:
    """Return what to release.

    A run that a candidate started names its registration. One that version 0.1 started, or a script of its time, names
    a recipe in the place of the model.

    Returns:
        {"candidate": the section that looks it up, "registration": URI of the one that announced it | None}.
    """
    params = context["params"]
    model, overrides = params["model"], params["overrides"]
    if (recipe := params.get("recipe")) and "model" not in (context["dag_run"].conf or {}):
        model = resolve(recipe, {key: overrides[key] for key in overrides.keys() & {"model"}}).model
    config = {"model": model, "version": params["version"] or None}
    candidate = Section.of({"job": "candidate", "config": config, "size": overrides.get("sizes.candidate")})
    return {"candidate": candidate.document(), "registration": params.get("registration")}


@record_failure
def release_recipe(context: Context, candidate: str) -> dict[str, Any]:
    """Return how to release what the record at the URI `candidate` describes, as `ResolvedRecipe.plan` does.

    By the recipe with which it was registered, with the form's overrides on top; where it was registered before that
    was kept, by what the file of its recipe says now.
    """
    store, name = store_of(candidate)
    record = store.read_json(name, "candidate.json")
    overrides = context["params"]["overrides"]
    version = f"version {record['version']} of {record['model']}"
    if (carried := record.get("resolved_recipe")) is not None:
        recipe = override(ResolvedRecipe.of(carried, version), overrides, _STAGES)
        _log.info("%s is released by the recipe %s as its run had it%s", version, recipe.name, _with(recipe.overrides))
    else:
        recipe = resolve(record["recipe"], overrides, _STAGES)
        _log.warning(
            "%s was registered before candidates brought their recipe along: it is released by the file of the recipe "
            "%s as it is now%s, without what its own run overrode",
            version,
            recipe.name,
            _with(overrides),
        )
    if (named := context["params"].get("recipe")) not in (None, recipe.name):
        _log.warning("the run names the recipe %s, from which it takes only the model", named)
    if idle := [key for key in overrides if key.split(".")[0] not in _OVERRIDABLE]:
        _log.warning("no task of a release reads %s, so that overriding it changes nothing", ", ".join(idle))
    return recipe.plan()


def _with(overrides: Mapping[str, Any]) -> str:
    return f", with {json.dumps(overrides, ensure_ascii=False)}" if overrides else ""


@record_failure
def release_inputs(candidate: str) -> dict[str, str | None]:
    """Return what the record at the URI `candidate` says: {"model", "version", "champion_version", and by name the URIs
    of "merged", "curated" and "evaluation"}.
    """
    store, name = store_of(candidate)
    record = store.read_json(name, "candidate.json")
    made_from = {part: record["inputs"][part]["uri"] for part in ("merged", "curated", "evaluation")}
    return {**{key: record[key] for key in ("model", "version", "champion_version")}, **made_from}


def promotion(model: Any) -> dict[str, Any]:
    """Return the section of the job that makes MLflow's champion the version that is live on `model`."""
    serving = current_platform().serving
    place = {"controller_url": serving.controller_url, "token_file": serving.token_file}
    return Section(job="promote", config={"model": model, **place}).document()


def _announced_by(event: Any) -> AnnouncedCandidate:
    artifact = event.extra.get("artifact")
    if not isinstance(artifact, str):
        raise ArtifactError('it names no candidate: its extra lacks {"artifact": the URI of a registration}')
    return AnnouncedCandidate(artifact=artifact, source_run=event.source_run_id)


def _release(candidate: AnnouncedCandidate) -> AnnouncedRun:
    model, version = _registered(candidate.artifact)
    return AnnouncedRun(
        run=Run(dag_id=RELEASE, run_id=release_run_id(model, version, candidate.source_run)),
        conf={"model": model, "version": version, "registration": candidate.artifact},
    )


def _registered(artifact: str) -> tuple[str, str]:
    """Return model and version of a registration. Raises ArtifactError where the artifact is none."""
    store, name = store_of(artifact)
    record = store.read_json(name, "candidate.json")
    manifest = store.manifest(name)
    assert manifest is not None
    # What the job `candidate` leaves names both, too, but that job is configured without a recipe.
    if not (isinstance(record, dict) and record.keys() >= {"model", "version"} and "recipe" in manifest.config):
        raise ArtifactError(f"{artifact} is no registration of a candidate")
    return record["model"], record["version"]
