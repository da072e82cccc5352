"""The assets that connect the DAGs: data sets that arrive, candidates that are ready for release."""

from __future__ import annotations

from airflow.sdk import Asset, AssetOrTimeSchedule, AssetWatcher, CronTriggerTimetable

from include.platforms import current_platform
from include.release.candidates import AnnouncedCandidate
from operators.arrivals.arrival import Arrival
from operators.arrivals.trigger import DatasetArrivalTrigger

CANDIDATE = Asset(name=AnnouncedCandidate.asset, uri="x-anemone://registry/candidate")
"""A registered candidate; an event's extra is {"artifact": URI of its registration, "metrics"}."""

_CLOCK = "*/5 * * * *"
"""Events come at once. What no event tells of (a DAG that was paused, a start that was refused) waits this long."""


def arrived_datasets() -> Asset:
    """Return the asset of the data sets that arrive in the platform's folder; an event's payload is the trigger's.

    A DAG file names the one object wherever it needs the asset: Airflow takes the watchers of the last that it finds.
    """
    arrivals = current_platform().arrivals
    trigger = DatasetArrivalTrigger(
        folder=arrivals.folder,
        settle_seconds=arrivals.settle_seconds,
        poll_seconds=arrivals.poll_seconds,
        recipe=arrivals.recipe,
    )
    return Asset(
        name=Arrival.asset,
        uri="x-anemone://datasets/arrived",
        watchers=[AssetWatcher(name="arrivals_folder", trigger=trigger)],
    )


def when_announced(asset: Asset) -> AssetOrTimeSchedule:
    """Return the schedule of a DAG that starts a run for whatever is announced of `asset`: its events, and a clock."""
    return AssetOrTimeSchedule(timetable=CronTriggerTimetable(_CLOCK, timezone="UTC"), assets=[asset])
