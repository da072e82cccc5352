"""One pydantic model a job. Nothing is imported here: a spec module is loaded when its job is asked for.

A job's spec and its package lie at the same place below `include/specs/` and `jobs/`; its name is the last part of it:
`include/specs/demo/pretrain.py` and `jobs/demo/pretrain/` are the job `pretrain`.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from include.errors import ConfigurationError, suggestion

if TYPE_CHECKING:
    from include.model import Model
    from include.specs.base import JobSpec

_FOLDER = Path(__file__).parent


def job_names() -> list[str]:
    """Return the name of every job, sorted."""
    return sorted(_places())


def job_place(job: str) -> tuple[str, ...]:
    """Return where a job lies below `include/specs/` and `jobs/`, as in ("demo", "pretrain").

    Raises:
        ConfigurationError: there is no such job.
    """
    places = _places()
    if job not in places:
        raise ConfigurationError(f"there is no job {job!r}: {suggestion(job, sorted(places))}")
    return places[job]


def job_module(job: str) -> str:
    """Return the package that `python -m` runs as the job. Raises ConfigurationError for an unknown one."""
    return ".".join(("jobs", *job_place(job)))


def spec_class(job: str) -> type[JobSpec[Any, Any]]:
    """Return the spec model of `job`. Raises ConfigurationError for an unknown one."""
    return _spec_module(job).Spec


def config_class(job: str) -> type[Model]:
    """Return the configuration model of `job`: what a recipe's section for it may hold."""
    return _spec_module(job).Config


def _spec_module(job: str) -> ModuleType:
    return import_module(".".join(("include.specs", *job_place(job))))


@cache
def _places() -> dict[str, tuple[str, ...]]:
    found = (path.relative_to(_FOLDER).with_suffix("").parts for path in _FOLDER.rglob("*.py"))
    return {parts[-1]: parts for parts in found if parts[-1] not in ("__init__", "base")}
