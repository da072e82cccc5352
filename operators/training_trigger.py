"""Former module of the trigger: Airflow resumes runs that version 0.1 deferred through this name."""

from __future__ import annotations

from typing import Any

from operators.kubernetes import training_trigger

__all__ = ["TrainingTrigger"]


class TrainingTrigger(training_trigger.TrainingTrigger):
    """`operators.kubernetes.training_trigger.TrainingTrigger` with the arguments of version 0.1."""

    def __init__(self, *, form: str, **kwargs: Any) -> None:
        super().__init__(workload=form, **kwargs)
