"""Follows a rollout in the triggerer until the canary controller has ended it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from airflow.triggers.base import BaseTrigger, TriggerEvent

from include.errors import AnemoneError, TryAgainError
from include.events import format_event
from include.platforms import current_platform
from include.release.controller_client import ControllerClient, new_notes

_LEAST_SECONDS = 5.0
"""The executor reports the end of a deferred task's process up to a few seconds late; the scheduler would take a task
that has been resumed by then for a failed one, and retry it (airflow 3.3.2)."""

_ABORT_TRIES = 5
_ABORT_PAUSE_SECONDS = 3.0
"""All tries together take less than the 30 s that Airflow gives `on_kill`."""


class RolloutTrigger(BaseTrigger):
    """Fires once a rollout has ended, or cannot be followed any more, and logs its notes until then.

    The event is {"rollout": id, "notes_logged": how many notes are in the log, "error": why the rollout cannot be
    followed, or None}. A controller that cannot be reached is waited for, up to the platform's
    `serving.unreachable_seconds`.

    Args:
        rollout: id.
        notes_logged: how many of its notes the task has logged already.
        own: False where it is another task's rollout, which this task waits for: its notes are in that task's log, and
            stopping this task does not abort it.
    """

    def __init__(self, *, rollout: str, notes_logged: int = 0, own: bool = True) -> None:
        super().__init__()
        self.rollout = rollout
        self.notes_logged = notes_logged
        self.own = own

    def serialize(self) -> tuple[str, dict[str, Any]]:
        return "operators.release.trigger.RolloutTrigger", {
            "rollout": self.rollout,
            "notes_logged": self.notes_logged,
            "own": self.own,
        }

    async def run(self) -> AsyncIterator[TriggerEvent]:
        serving = current_platform().serving
        controller = ControllerClient(serving.controller_url, serving.token_file)
        clock = asyncio.get_running_loop().time
        notes_logged, progress, unreachable_since = self.notes_logged, None, None
        started = clock()
        while True:
            try:
                status = await asyncio.to_thread(controller.status, self.rollout)
            except TryAgainError as error:
                if unreachable_since is None:
                    unreachable_since = clock()
                    self.log.warning("%s; waiting for it up to %.0f s", error, serving.unreachable_seconds)
                elif clock() - unreachable_since > serving.unreachable_seconds:
                    yield self._event(notes_logged, str(error))
                    return
            except AnemoneError as error:
                yield self._event(notes_logged, str(error))
                return
            else:
                if status is None:
                    yield self._event(
                        notes_logged, f"the canary controller does not know rollout {self.rollout} any more"
                    )
                    return
                unreachable_since = None
                for line in new_notes(status, notes_logged) if self.own else ():
                    self.log.info("%s", line)
                notes_logged = max(notes_logged, len(status.notes))
                if status.ended:
                    await asyncio.sleep(max(0.0, started + _LEAST_SECONDS - clock()))
                    yield self._event(notes_logged)
                    return
                if progress != (progress := (status.state, status.step, status.weight)):
                    fields = {"state": status.state, "step": status.step, "weight": status.weight}
                    known = {key: value for key, value in fields.items() if value is not None}
                    self.log.info("%s", format_event("rollout", {**known, **status.figures}))
            await asyncio.sleep(serving.poll_seconds)

    def _event(self, notes_logged: int, error: str | None = None) -> TriggerEvent:
        return TriggerEvent({"rollout": self.rollout, "notes_logged": notes_logged, "error": error})

    async def on_kill(self) -> None:
        """Abort the rollout: a person cleared or marked the task. Not called when the triggerer stops."""
        if not self.own:
            return
        serving = current_platform().serving
        controller = ControllerClient(serving.controller_url, serving.token_file)
        for attempt in range(_ABORT_TRIES):
            try:
                refusal = await asyncio.to_thread(
                    controller.abort, self.rollout, "its task was cleared, or marked by a person"
                )
            except AnemoneError as error:
                self.log.error("rollout %s could not be aborted (try %d): %s", self.rollout, attempt + 1, error)
                await asyncio.sleep(_ABORT_PAUSE_SECONDS)
            else:
                if refusal is None:
                    self.log.info("rollout %s is aborted: the traffic goes back to the champion", self.rollout)
                else:
                    self.log.warning("already promoted: %s; clear this task so that promote follows", refusal)
                return
