"""A pass over what was announced: every announcement without a run gets its run."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from airflow.sdk.exceptions import AirflowException, AirflowFailException

from include.announcements import Announcement, Announcements
from include.artifacts.uses import Run
from include.errors import AnemoneError, ArtifactError
from operators.errors import as_airflow_errors
from operators.start_run import start_run

if TYPE_CHECKING:
    from airflow.sdk import Context

A = TypeVar("A", bound=Announcement)

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class AnnouncedRun:
    """The run that an announcement starts."""

    run: Run
    conf: Mapping[str, Any]


@as_airflow_errors()
def start_announced_runs(
    context: Context,
    announcements: Announcements[A],
    *,
    run_of: Callable[[A], AnnouncedRun],
    from_event: Callable[[Any], A],
) -> list[str]:
    """Start the run of every announcement that has none; return the ids of those that were started.

    What is pending in the store counts, whichever event or clock called. What the events tell that was never written
    down (another version's, one that a person created) is written down first, also that of later events, which Airflow
    gives to no run until another event comes. One that cannot be read, or not be started, keeps none of the others.

    Args:
        run_of: returns the run of an announcement; raises ArtifactError where it never can.
        from_event: returns what an asset event announces; raises ArtifactError where it announces nothing.

    Raises:
        AirflowFailException: an announcement cannot be read, or what it names is gone: it was set aside.
        AirflowException: the store or Airflow's API server cannot be reached, or refuses; the clock tries again, too.
    """
    problems = _Problems()
    pending = set(announcements.pending())
    for event in _events(context):
        with problems.of(f"an event of {event.timestamp}"):
            announcement = from_event(event)
            if announcement.key not in pending and not announcements.was_started(run_of(announcement).run):
                announcements.add(announcement)
    started = []
    for key in announcements.pending():
        try:
            if run_id := _start(announcements, key, run_of):
                started.append(run_id)
        except ArtifactError as error:
            if (aside := announcements.refuse(key)) is not None:
                problems.refused(f"{error}; what was announced lies in {aside}: correct it and move it to pending/")
        except AnemoneError as error:
            problems.failed(f"{announcements.place(key)} starts no run now: {error}")
    problems.raise_any()
    return started


def _start(announcements: Announcements[A], key: str, run_of: Callable[[A], AnnouncedRun]) -> str | None:
    """Start the run of one announcement; return its id, or None where it was started before."""
    announcement = announcements.read(key)
    if announcement is None:
        return None
    found = run_of(announcement)
    is_new = not announcements.was_started(found.run)
    if is_new:
        is_new = start_run(found.run.dag_id, found.run.run_id, found.conf)
        announcements.note_start(found.run, announcement)
    announcements.settle(key)
    _log.info("%s run %s of %s", "started" if is_new else "there was already the", found.run.run_id, found.run.dag_id)
    return found.run.run_id if is_new else None


def _events(context: Context) -> Iterator[Any]:
    """Yield the events that started this run, and those that came after the first of them."""
    for asset, events in context["triggering_asset_events"].items():
        if events:
            first = min(event.timestamp for event in events)
            yield from context["inlet_events"][asset].after(first.isoformat())


class _Problems:
    """What went wrong with single announcements, kept until the others are through."""

    def __init__(self) -> None:
        self._refused: list[str] = []
        self._failed: list[str] = []

    @contextmanager
    def of(self, what: str) -> Iterator[None]:
        """Keep the error of what is done inside."""
        try:
            yield
        except ArtifactError as error:
            self.refused(f"{what} starts no run: {error}")
        except AnemoneError as error:
            self.failed(f"{what} starts no run now: {error}")

    def refused(self, message: str) -> None:
        """Keep a problem that trying again does not cure."""
        _log.error("%s", message)
        self._refused.append(message)

    def failed(self, message: str) -> None:
        """Keep a problem that may pass."""
        _log.warning("%s", message)
        self._failed.append(message)

    def raise_any(self) -> None:
        """Raise AirflowFailException where something was refused, AirflowException where something may pass."""
        if found := [*self._refused, *self._failed]:
            more = f" (and {len(found) - 1} more: see the log)" if len(found) > 1 else ""
            raise (AirflowFailException if self._refused else AirflowException)(f"{found[0]}{more}")
