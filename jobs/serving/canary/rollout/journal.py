"""The record of one rollout, and the notes that its status gives to people."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from include.release.rollouts import Note, RolloutStatus, State
from jobs.serving.canary.state.records import Records, Rollout
from jobs.serving.log import log


class Journal:
    """Writes one rollout's record.

    Attributes:
        rollout: the record as it is on disk, but for the newest figures.
    """

    def __init__(self, rollout: Rollout, records: Records) -> None:
        self.rollout = rollout
        self._records = records

    @property
    def status(self) -> RolloutStatus:
        return self.rollout.status

    def change(self, **changes: Any) -> None:
        """Change fields of the rollout itself; they become durable with the next note."""
        self.rollout = self.rollout.model_copy(update=changes)

    def save(self, state: State, message: str, **changes: Any) -> None:
        """Write a note durably.

        Args:
            changes: further fields of the status.
        """
        self.commit(self.with_note(state, message, **changes))

    def commit(self, rollout: Rollout) -> None:
        """Make a record durable, and log its newest note."""
        self._records.save_rollout(rollout)
        self.rollout = rollout
        note = rollout.status.notes[-1]
        log("rollout", id=rollout.id, target=rollout.request.target, state=note.state, message=note.message)

    def with_note(self, state: State, message: str, **changes: Any) -> Rollout:
        """Return the record with one more note, without writing it."""
        note = Note(time=datetime.now(UTC), state=state, message=message)
        notes = (*self.status.notes, note)
        status = self.status.model_copy(update={"state": state, "notes": notes, **changes})
        return self.rollout.model_copy(update={"status": status})

    def set_status(self, **changes: Any) -> None:
        """Change fields of the status in memory only: they change too often, and the analysis log has them."""
        self.rollout = self.rollout.model_copy(update={"status": self.status.model_copy(update=changes)})
