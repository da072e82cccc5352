"""Former module of the trigger: Airflow resumes runs that version 0.1 deferred through this name."""

from operators.kubernetes.pod_trigger import PodJobTrigger

__all__ = ["PodJobTrigger"]
