"""Where this trigger lay before version 0.2: trainings that were followed then go on through this name."""

from operators.kubernetes.training_trigger import TrainingTrigger

__all__ = ["TrainingTrigger"]
