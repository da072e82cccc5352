"""Where this trigger lay before version 0.2: pods that were followed then go on through this name."""

from operators.kubernetes.pod_trigger import PodJobTrigger

__all__ = ["PodJobTrigger"]
