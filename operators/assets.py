"""The assets that connect the DAGs: data sets that arrive, candidates that are ready for release."""

from __future__ import annotations

from airflow.sdk import Asset, AssetWatcher

from include.platforms import current_platform
from operators.arrivals.trigger import DatasetArrivalTrigger

CANDIDATE = Asset(name="candidate", uri="x-anemone://registry/candidate")
"""A registered candidate; an event's extra is {"artifact": URI of its registration, "metrics"}."""


def arrived_datasets() -> Asset:
    """Return the asset of the data sets that arrive in the platform's folder; an event's payload is the trigger's."""
    arrivals = current_platform().arrivals
    trigger = DatasetArrivalTrigger(
        folder=arrivals.folder, settle_seconds=arrivals.settle_seconds, poll_seconds=arrivals.poll_seconds
    )
    return Asset(
        name="arrived_datasets",
        uri="x-anemone://datasets/arrived",
        watchers=[AssetWatcher(name="arrivals_folder", trigger=trigger)],
    )
