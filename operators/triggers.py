"""Where triggers lay before version 0.2: runs that were deferred then resume through these names."""

from operators.arrivals.trigger import DatasetArrivalTrigger
from operators.gates.trigger import ArtifactTrigger
from operators.release.trigger import RolloutTrigger

__all__ = ["ArtifactTrigger", "DatasetArrivalTrigger", "RolloutTrigger"]
