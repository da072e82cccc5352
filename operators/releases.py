"""What a run of `release` or `rollback` is about."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from airflow.sdk.exceptions import AirflowException, AirflowFailException

from include.artifacts.store import Store
from include.errors import AnemoneError, TryAgainError
from include.platforms import current_platform
from include.recipes import recipe_names, resolve
from operators.serving import Controller

if TYPE_CHECKING:
    from airflow.sdk import Context

_log = logging.getLogger(__name__)


def planned_release(context: Context) -> dict[str, Any]:
    """What to release, and how: from the registrations that started the run, else from the form.

    One run releases one candidate. Where Airflow merged several events into a run it is the highest version of the
    model that was registered last.

    Returns:
        {"candidate", "engine": a section each, as `include.recipes.resolve` gives them; "canary": the policy}.
    """
    params = context["params"]
    try:
        if events := [event for found in context["triggering_asset_events"].values() for event in found]:
            events.sort(key=lambda event: event.timestamp)
            registration = _newest([_registration(event) for event in events])
            recipe, model, version = (registration[key] for key in ("recipe", "model", "version"))
            sections = resolve(recipe, params["overrides"])
        else:
            sections = resolve(params["recipe"], params["overrides"])
            model, version = sections["model"], params["version"] or None
    except AnemoneError as error:
        raise AirflowFailException(str(error)) from None
    return {
        "candidate": {"job": "candidate", "config": {"model": model, "version": version}},
        "engine": sections["engine"],
        "canary": sections["canary"],
    }


def release_inputs(candidate: str) -> dict[str, str | None]:
    """What the record at the URI `candidate` says: {"model", "version", "champion_version", and by name the URIs of
    "merged", "curated" and "evaluation"}.
    """
    try:
        store, name = Store.of(candidate)
        record = store.read_json(name, "candidate.json")
    except AnemoneError as error:
        raise AirflowFailException(str(error)) from None
    made_from = {part: record["inputs"][part]["uri"] for part in ("merged", "curated", "evaluation")}
    return {**{key: record[key] for key in ("model", "version", "champion_version")}, **made_from}


def promotion(target: str) -> dict[str, Any]:
    """The section of a job that makes MLflow's champion the version that is live on `target` now.

    It is asked for anew instead of taken from the rollout: another may have ended since, and whoever comes last must
    leave the alias where the traffic is.
    """
    try:
        status = Controller(current_platform().serving).target(target)
    except TryAgainError as error:
        raise AirflowException(str(error)) from None
    except AnemoneError as error:
        raise AirflowFailException(str(error)) from None
    if status is None or status.champion is None:
        raise AirflowFailException(
            f"nothing is live on {target} any more: it was taken out of service; release a version to put it back"
        )
    return {"job": "promote", "config": {"model": target, "version": status.champion.release.version}}


def model_choices() -> list[str]:
    """For the form: the models of all recipes, that of the platform's own recipe first."""
    own = resolve(current_platform().arrivals.recipe)["model"]
    return [own, *sorted({resolve(name)["model"] for name in recipe_names()} - {own})]


def _registration(event: Any) -> dict[str, str]:
    store, name = Store.of(event.extra["artifact"])
    record = store.read_json(name, "candidate.json")
    manifest = store.manifest(name)
    assert manifest is not None
    return {"model": record["model"], "version": record["version"], "recipe": manifest.config["recipe"]}


def _newest(registrations: list[dict[str, str]]) -> dict[str, str]:
    """Of registrations in the order of their events."""
    model = registrations[-1]["model"]
    for other in sorted({found["model"] for found in registrations} - {model}):
        _log.warning("a candidate of %s was announced in the same run: start `release` for it by the form", other)
    return max((found for found in registrations if found["model"] == model), key=lambda found: int(found["version"]))
