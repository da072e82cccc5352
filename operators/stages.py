"""From a stage of a recipe to a task: by the operator that the platform names."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from include.errors import ConfigurationError
from include.platforms import Platform, current_platform
from operators.job import JobOperator

if TYPE_CHECKING:
    from collections.abc import Mapping


def stage(task_id: str, section: Any, *, inputs: Mapping[str, Any] | None = None, **kwargs: Any) -> JobOperator:
    """Return a task that runs one job on the current platform and returns its artifact's URI.

    Args:
        section: the stage's section of a resolved recipe (`include.recipes.resolved.Section`) as JSON: usually an
            XComArg, or a dict that may hold some. Texts in it, chat templates for instance, are never rendered.
        inputs: artifact URI by input name, usually `other.output`.
        kwargs: any of BaseOperator's arguments; they come before the platform's.

    Raises:
        ConfigurationError: the platform's operator cannot be used.
    """
    platform = current_platform()
    operator = job_operator(platform)
    arguments = {**operator.platform_arguments(platform, task_id), **kwargs}
    return operator(task_id=task_id, section=section, inputs=inputs, **arguments)


def job_operator(platform: Platform) -> type[JobOperator]:
    """Import the class that runs the platform's jobs.

    Raises:
        ConfigurationError: it cannot be imported, or is no `operators.job.JobOperator`.
    """
    module, _, name = platform.operator.rpartition(".")
    where = f"the platform {platform.name} names the operator {platform.operator}"
    try:
        found = getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ConfigurationError(
            f"{where}, which cannot be imported ({error}): correct the key operator, or install the module beside "
            "Airflow on each of its components"
        ) from error
    if not (isinstance(found, type) and issubclass(found, JobOperator)):
        raise ConfigurationError(f"{where}, which is not a subclass of operators.JobOperator: name one that is")
    return found
