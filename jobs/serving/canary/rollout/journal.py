"""The record of one rollout: what is durable of it, and what is said of it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from include.release.rollouts import Note, RolloutStatus, State
from jobs.serving.canary.state.records import Records, Rollout
from jobs.serving.router.log import log


class Journal:
    """`rollout` is the record as it is durable, but for the newest figures."""

    def __init__(self, rollout: Rollout, records: Records) -> None:
        self.rollout = rollout
        self._records = records

    @property
    def status(self) -> RolloutStatus:
        return self.rollout.status

    def change(self, **changes: Any) -> None:
        """Of the rollout itself; durable with the next note."""
        self.rollout = self.rollout.model_copy(update=changes)

    def save(self, state: State, message: str, **changes: Any) -> None:
        """Note how it stands, durably; `changes` are to the status."""
        self.keep(self.noted(state, message, **changes))

    def keep(self, rollout: Rollout) -> None:
        """Make it durable, and tell its newest note."""
        self._records.save_rollout(rollout)
        self.rollout = rollout
        note = rollout.status.notes[-1]
        log("rollout", id=rollout.id, target=rollout.request.target, state=note.state, message=note.message)

    def noted(self, state: State, message: str, **changes: Any) -> Rollout:
        """The rollout with one more note, not kept yet."""
        note = Note(time=datetime.now(UTC), state=state, message=message)
        notes = (*self.status.notes, note)
        status = self.status.model_copy(update={"state": state, "notes": notes, **changes})
        return self.rollout.model_copy(update={"status": status})

    def set_status(self, **changes: Any) -> None:
        """What changes too often to be worth a durable write; the looks have it."""
        self.rollout = self.rollout.model_copy(update={"status": self.status.model_copy(update=changes)})
