"""The one place that knows which operator class runs a job on which platform."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from include.platforms import current_platform

if TYPE_CHECKING:
    from collections.abc import Mapping

    from airflow.sdk import BaseOperator


def stage(task_id: str, section: Any, *, inputs: Mapping[str, Any] | None = None, **kwargs: Any) -> BaseOperator:
    """A task that runs one job on the current platform and returns its artifact's URI.

    Args:
        section: the stage's section of a resolved recipe (see `include.recipes.resolve`), usually an XComArg.
        inputs: artifact URI by input name, usually `other.output`.
        kwargs: any of BaseOperator's arguments.
    """
    platform = current_platform()
    match platform.runner:
        case "local":
            from operators.local.operator import LocalJobOperator as Operator
        case "kubernetes":
            from operators.kubernetes.training_operator import DistributedJobOperator as Operator
    if platform.cluster is not None:
        asked = {"pool": platform.cluster.pools, "retries": platform.cluster.retries}
        kwargs = {**{key: by_task[task_id] for key, by_task in asked.items() if task_id in by_task}, **kwargs}
    return Operator(task_id=task_id, section=section, inputs=inputs, **kwargs)
