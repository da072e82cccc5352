"""One pydantic model a job. Nothing is imported here: a spec module is loaded when its job is asked for."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from include.errors import ConfigurationError

if TYPE_CHECKING:
    from include.specs.base import JobSpec, Model


def job_names() -> list[str]:
    """Every job there is, sorted."""
    return sorted(path.stem for path in Path(__file__).parent.glob("*.py") if path.stem not in ("__init__", "base"))


def spec_class(job: str) -> type[JobSpec]:
    """The spec model of `job`. Raises ConfigurationError for an unknown one."""
    if job not in job_names():
        raise ConfigurationError(f"there is no job {job!r}: choose one of {', '.join(job_names())}")
    return import_module(f"include.specs.{job}").Spec


def config_class(job: str) -> type[Model]:
    """The configuration model of `job`: what a recipe's section for it may hold."""
    spec_class(job)
    return import_module(f"include.specs.{job}").Config
