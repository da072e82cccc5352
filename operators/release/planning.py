"""How a run of `release` comes to be, and what it and `rollback` are about."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from airflow.sdk.exceptions import AirflowFailException

from include.errors import AnemoneError, TryAgainError
from include.platforms import current_platform
from include.recipes import recipe_names, resolve
from include.release.candidates import release_run_id
from operators.errors import as_airflow_errors, record_failure
from operators.store import store_of

if TYPE_CHECKING:
    from airflow.sdk import Context

_log = logging.getLogger(__name__)


@as_airflow_errors()
def announced_releases(context: Context) -> list[dict[str, Any]]:
    """One run of `release` for each model of which a candidate was announced, named so that there can be only one.

    Airflow may deliver several events in one run; of one model the newest version is released.

    Returns:
        {"run_id", "conf"} of each run.
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
    """What to release, and how.

    Returns:
        {"candidate", "engine": a section each, as `include.recipes.resolve` gives them; "canary": the policy}.
    """
    params = context["params"]
    sections = resolve(params["recipe"], params["overrides"])
    config = {"model": sections["model"], "version": params["version"] or None}
    return {
        "candidate": {"job": "candidate", "config": config},
        "engine": sections["engine"],
        "canary": sections["canary"],
    }


@record_failure
def release_inputs(candidate: str) -> dict[str, str | None]:
    """What the record at the URI `candidate` says: {"model", "version", "champion_version", and by name the URIs of
    "merged", "curated" and "evaluation"}.
    """
    store, name = store_of(candidate)
    record = store.read_json(name, "candidate.json")
    made_from = {part: record["inputs"][part]["uri"] for part in ("merged", "curated", "evaluation")}
    return {**{key: record[key] for key in ("model", "version", "champion_version")}, **made_from}


def promotion(model: Any) -> dict[str, Any]:
    """The section of the job that makes MLflow's champion the version that is live on `model`."""
    serving = current_platform().serving
    place = {"controller_url": serving.controller_url, "token_file": serving.token_file}
    return {"job": "promote", "config": {"model": model, **place}}


def model_choices() -> list[str]:
    """For the form: the models of all recipes, that of the platform's own recipe first."""
    own = resolve(current_platform().arrivals.recipe)["model"]
    return [own, *sorted({resolve(name)["model"] for name in recipe_names()} - {own})]


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
    """The override that a candidate needs whose run had registered it under another model than its recipe's."""
    model = registration["model"]
    try:
        own = resolve(registration["recipe"])["model"]
    except AnemoneError:
        # The release says so itself.
        own = model
    return {} if own == model else {"overrides": {"model": model}}
