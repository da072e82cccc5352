"""Announced candidates, and the run id of the release that each starts, of which there can be only one."""

from __future__ import annotations

from typing import ClassVar

from include.announcements import Announcement
from include.artifacts.naming import digest

_PREFIX = "candidate__"


class AnnouncedCandidate(Announcement):
    """A candidate that was registered and is to be released.

    Attributes:
        artifact: URI of its registration.
        source_run: id of the run of `customize` that registered it; None where no run did.
    """

    asset: ClassVar[str] = "candidate"

    artifact: str
    source_run: str | None = None

    @property
    def identity(self) -> list[str | None]:
        return [self.artifact, self.source_run]


def release_run_id(model: str, version: str, source_run: str | None) -> str:
    """Return the run id of the release of a model version that a run of `customize` registered.

    Args:
        source_run: id of that run; None where no run did.
    """
    return f"{_PREFIX}{model}-v{version}{_source(source_run)}"


def is_release_of(run_id: str, source_run: str) -> bool:
    """Return whether a run of `release` was started by what the run `source_run` of `customize` registered."""
    return run_id.startswith(_PREFIX) and run_id.endswith(_source(source_run))


def _source(run: str | None) -> str:
    return f"__{digest(run)[:8]}"
