"""Plans of `release` and `rollback`, and the runs that announced candidates start."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from airflow.sdk.exceptions import AirflowFailException

from include.errors import AnemoneError, TryAgainError
from include.platforms import current_platform
from include.recipes import resolve
from include.recipes.resolved import Section
from include.release.candidates import release_run_id
from operators.errors import as_airflow_errors, record_failure
from operators.store import store_of

if TYPE_CHECKING:
    from airflow.sdk import Context

_log = logging.getLogger(__name__)


@as_airflow_errors()
def announced_releases(context: Context) -> list[dict[str, Any]]:
    """Return one run of `release` for each model of which a candidate was announced, named so that there is only one.

    Airflow may deliver several events in one run; of one model the newest version is released.

    Returns:
        {"run_id", "conf"} of each run.

    Raises:
        AirflowFailException: none of the announced candidates can be read.
        TryAgainError: the store cannot be reached.
    """
    newest: dict[str, dict[str, str]] = {}
    events = [event for found in context["triggering_asset_events"].values() for event in found]
    for event in sorted(events, key=lambda event: event.timestamp):
        try:
            found = _registration(event)
        except TryAgainError:
            raise
        except AnemoneError as error:
            # One that cannot be read must not keep the others from being released.
            _log.error("the candidate that %s announced is not released: %s", event.source_run_id, error)
            continue
        known = newest.get(found["model"])
        if known is not None and int(known["version"]) > int(found["version"]):
            known, found = found, known
        if known is not None:
            _log.info(
                "version %s of %s is superseded by version %s, which was announced in the same run",
                known["version"],
                known["model"],
                found["version"],
            )
        newest[found["model"]] = found
    if events and not newest:
        raise AirflowFailException("none of the announced candidates can be read: see the errors above")
    return [
        {
            "run_id": release_run_id(model, found["version"], found["source_run"]),
            "conf": {"recipe": found["recipe"], "version": found["version"], **_other_model(found)},
        }
        for model, found in newest.items()
    ]


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


def _registration(event: Any) -> dict[str, str]:
    store, name = store_of(event.extra["artifact"])
    record = store.read_json(name, "candidate.json")
    manifest = store.manifest(name)
    assert manifest is not None
    return {
        "model": record["model"],
        "version": record["version"],
        "recipe": manifest.config["recipe"],
        "source_run": event.source_run_id,
    }


def _other_model(registration: dict[str, str]) -> dict[str, Any]:
    """Return the override that a candidate needs whose run had registered it under another model than its recipe's."""
    model = registration["model"]
    try:
        own = resolve(registration["recipe"]).model
    except AnemoneError:
        # The release says so itself.
        own = model
    return {} if own == model else {"overrides": {"model": model}}
