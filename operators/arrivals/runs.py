"""Runs of `customize` for announced data sets."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from include.artifacts.naming import digest
from include.platforms import current_platform

if TYPE_CHECKING:
    from airflow.sdk import Context


def announced_runs(context: Context) -> list[dict[str, Any]]:
    """Return one run of `customize` for each announced data set, named so that there can be only one.

    Airflow may deliver several events in one run, or one event twice; the run id, made of the data set's digest and
    the recipe, is unique in its database.

    Returns:
        {"run_id", "conf"} of each run.
    """
    recipe = current_platform().arrivals.recipe
    runs = {}
    for events in context["triggering_asset_events"].values():
        for event in events:
            payload = event.extra["payload"]
            run_id = f"arrival__{payload['digest'][:16]}__{digest(recipe)[:8]}"
            conf = {"data": payload["source"], "recipe": recipe, "digest": payload["digest"]}
            runs[run_id] = {"run_id": run_id, "conf": conf}
    return list(runs.values())
