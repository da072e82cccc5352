"""The run id of the release that an announced candidate starts, of which there can be only one."""

from __future__ import annotations

from include.artifacts.naming import digest

_PREFIX = "candidate__"


def release_run_id(model: str, version: str, source_run: str) -> str:
    """Return the run id of the release of a model version that a run of `customize` registered.

    Args:
        source_run: id of that run.
    """
    return f"{_PREFIX}{model}-v{version}{_source(source_run)}"


def is_release_of(run_id: str, source_run: str) -> bool:
    """Return whether a run of `release` was started by what the run `source_run` of `customize` registered."""
    return run_id.startswith(_PREFIX) and run_id.endswith(_source(source_run))


def _source(run: str) -> str:
    return f"__{digest(run)[:8]}"
