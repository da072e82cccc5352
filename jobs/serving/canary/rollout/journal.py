"""The record of one rollout, and the notes that its status gives to people."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from include.release.rollouts import Note, RolloutStatus, State
from jobs.serving.canary.state.records import Records, Rollout
from jobs.serving.durably import unbroken
from jobs.serving.log import log

Change = Callable[[Rollout], Rollout | None]
"""From a record to the one that replaces it; None where nothing is to be changed any more."""


class Journal:
    """Writes one rollout's record.

    Attributes:
        rollout: the record as it is on disk, but for the newest figures.
    """

    def __init__(self, rollout: Rollout, records: Records) -> None:
        self.rollout = rollout
        self._records = records
        self._writing = asyncio.Lock()

    @property
    def status(self) -> RolloutStatus:
        return self.rollout.status

    def change(self, **changes: Any) -> None:
        """Change fields of the rollout itself; they become durable with the next note."""
        self.rollout = self.rollout.model_copy(update=changes)

    async def save(self, state: State, message: str, **changes: Any) -> None:
        """Write a note durably.

        Args:
            changes: further fields of the status.

        Raises:
            OSError: the disk does not take it; the record is as it was.
        """
        await self.commit(noting(state, message, **changes))

    async def commit(self, change: Change) -> None:
        """Make a change of the record durable, then put it in force, and log its newest note.

        Args:
            change: is called again with what is in memory once the record is on the disk, where figures may be newer.

        Raises:
            OSError: the disk does not take it; the record is as it was.
        """
        await unbroken(self._commit(change))

    async def _commit(self, change: Change) -> None:
        async with self._writing:
            notes = len(self.status.notes)
            record = change(self.rollout)
            if record is None:
                return
            await self._records.save_rollout(record)
            self.rollout = change(self.rollout) or record
        for note in self.status.notes[notes:]:
            rollout = self.rollout
            log("rollout", id=rollout.id, target=rollout.request.target, state=note.state, message=note.message)

    def set_status(self, **changes: Any) -> None:
        """Change fields of the status in memory only: they change too often, and the analysis log has them."""
        self.rollout = self.rollout.model_copy(update={"status": self.status.model_copy(update=changes)})


def noting(state: State, message: str, *, time: datetime | None = None, **changes: Any) -> Callable[[Rollout], Rollout]:
    """Return the change of a record that adds a note, of now by default, with further changes of the status."""
    note = Note(time=time or datetime.now(UTC), state=state, message=message)

    def change(rollout: Rollout) -> Rollout:
        notes = (*rollout.status.notes, note)
        status = rollout.status.model_copy(update={"state": state, "notes": notes, **changes})
        return rollout.model_copy(update={"status": status})

    return change
