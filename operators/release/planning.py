"""Plans of `release` and `rollback`, and the runs that announced candidates start."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from include.announcements import Announcements
from include.artifacts.uses import Run
from include.errors import AnemoneError, ArtifactError
from include.platforms import current_platform
from include.recipes import resolve
from include.recipes.resolved import Section
from include.release.candidates import AnnouncedCandidate, release_run_id
from operators.announced import AnnouncedRun, start_announced_runs
from operators.errors import record_failure
from operators.store import platform_store, store_of

if TYPE_CHECKING:
    from airflow.sdk import Context

RELEASE = "release"


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
    """Return what to release, and how.

    Returns:
        {"candidate", "engine": a section each; "canary": the policy}.
    """
    params = context["params"]
    recipe = resolve(params["recipe"], params["overrides"], stages=["engine"])
    candidate = Section(job="candidate", config={"model": recipe.model, "version": params["version"] or None})
    plan = recipe.with_stages(candidate=candidate).plan()
    return {key: plan[key] for key in ("candidate", "engine", "canary")}


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
    found = _registration(candidate.artifact)
    return AnnouncedRun(
        run=Run(dag_id=RELEASE, run_id=release_run_id(found["model"], found["version"], candidate.source_run)),
        conf={"recipe": found["recipe"], "version": found["version"], **_other_model(found)},
    )


def _registration(artifact: str) -> dict[str, str]:
    store, name = store_of(artifact)
    record = store.read_json(name, "candidate.json")
    manifest = store.manifest(name)
    assert manifest is not None
    try:
        return {"model": record["model"], "version": record["version"], "recipe": manifest.config["recipe"]}
    except (KeyError, TypeError):
        raise ArtifactError(f"{artifact} is no registration of a candidate") from None


def _other_model(registration: dict[str, str]) -> dict[str, Any]:
    """Return the override that a candidate needs whose run had registered it under another model than its recipe's."""
    model = registration["model"]
    try:
        own = resolve(registration["recipe"]).model
    except AnemoneError:
        # The release says so itself.
        own = model
    return {} if own == model else {"overrides": {"model": model}}
