"""Former module of the triggers: Airflow resumes runs that version 0.1 deferred through these names."""

from __future__ import annotations

from typing import Any

from operators.arrivals.trigger import DatasetArrivalTrigger
from operators.gates.trigger import ArtifactTrigger
from operators.release import trigger

__all__ = ["ArtifactTrigger", "DatasetArrivalTrigger", "RolloutTrigger"]


class RolloutTrigger(trigger.RolloutTrigger):
    """`operators.release.trigger.RolloutTrigger` with the arguments of version 0.1."""

    def __init__(self, *, told: int, **kwargs: Any) -> None:
        super().__init__(notes_logged=told, **kwargs)
