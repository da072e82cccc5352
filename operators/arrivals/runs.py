"""Runs of `customize` for the data sets that have arrived."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from include.errors import ArtifactError, first_problem
from operators.announced import AnnouncedRun, start_announced_runs
from operators.arrivals.arrival import Arrival, arrivals_of_platform, platform_recipe

if TYPE_CHECKING:
    from airflow.sdk import Context


def start_customizations(context: Context) -> list[str]:
    """Start the run of `customize` of every data set that has arrived and has none.

    Returns:
        Ids of the runs that were started.

    Raises:
        AirflowFailException, AirflowException: as `start_announced_runs`.
    """
    return start_announced_runs(
        context,
        arrivals_of_platform(),
        run_of=lambda arrival: AnnouncedRun(arrival.run, arrival.conf),
        from_event=_announced_by,
    )


def _announced_by(event: Any) -> Arrival:
    # An event of an earlier version names no recipe.
    payload = event.extra.get("payload")
    try:
        return Arrival.model_validate(
            {"recipe": platform_recipe(), **payload} if isinstance(payload, dict) else payload
        )
    except ValidationError as error:
        raise ArtifactError(
            f"its payload is no data set that has arrived ({first_problem(error, 'payload')})"
        ) from None
