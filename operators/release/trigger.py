"""Follows a rollout in the triggerer until the canary controller has ended it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from airflow.triggers.base import BaseTrigger, TriggerEvent

from include.errors import AnemoneError, TryAgainError
from include.events import format_event
from include.platforms import current_platform
from include.release.controller import ControllerClient, new_notes

_LEAST_SECONDS = 5.0
"""The executor tells the scheduler of a deferred task's end of process up to a few seconds late; a task that has been
resumed by then would be taken for one that failed, and retried (airflow 3.3.2)."""

_ABORT_TRIES = 5
_ABORT_PAUSE_SECONDS = 3.0
"""Together less than the 30 s that Airflow gives `on_kill`."""


class RolloutTrigger(BaseTrigger):
    """Fires once a rollout has ended, or cannot be followed any more, and tells its notes until then.

    The event is {"rollout": id, "told": how many notes the log has, "trouble": why it cannot be followed, or None}. A
    controller that is away is waited for, up to the platform's `serving.unreachable_seconds`.

    Args:
        rollout: id. `told`: how many of its notes the task has logged already.
        own: False: it is another task's, which is waited for; who ends this task leaves it alone, and its notes stand
            in the log of its own task.
    """

    def __init__(self, *, rollout: str, told: int = 0, own: bool = True) -> None:
        super().__init__()
        self.rollout = rollout
        self.told = told
        self.own = own

    def serialize(self) -> tuple[str, dict[str, Any]]:
        return "operators.release.trigger.RolloutTrigger", {"rollout": self.rollout, "told": self.told, "own": self.own}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        serving = current_platform().serving
        controller = ControllerClient(serving.controller_url, serving.token_file)
        clock = asyncio.get_running_loop().time
        told, stands, away_since = self.told, None, None
        began = clock()
        while True:
            try:
                status = await asyncio.to_thread(controller.status, self.rollout)
            except TryAgainError as error:
                if away_since is None:
                    away_since = clock()
                    self.log.warning("%s; waiting for it up to %.0f s", error, serving.unreachable_seconds)
                elif clock() - away_since > serving.unreachable_seconds:
                    yield self._event(told, str(error))
                    return
            except AnemoneError as error:
                yield self._event(told, str(error))
                return
            else:
                if status is None:
                    yield self._event(told, f"the canary controller does not know rollout {self.rollout} any more")
                    return
                away_since = None
                for line in new_notes(status, told) if self.own else ():
                    self.log.info("%s", line)
                told = max(told, len(status.notes))
                if status.ended:
                    await asyncio.sleep(max(0.0, began + _LEAST_SECONDS - clock()))
                    yield self._event(told)
                    return
                if stands != (stands := (status.state, status.step, status.weight)):
                    where = {"state": status.state, "step": status.step, "weight": status.weight}
                    given = {key: value for key, value in where.items() if value is not None}
                    self.log.info("%s", format_event("rollout", {**given, **status.figures}))
            await asyncio.sleep(serving.poll_seconds)

    def _event(self, told: int, trouble: str | None = None) -> TriggerEvent:
        return TriggerEvent({"rollout": self.rollout, "told": told, "trouble": trouble})

    async def on_kill(self) -> None:
        """A person cleared the task or marked it: its rollout goes back. Stopping the triggerer comes not here."""
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
                    self.log.info("rollout %s was told to go back", self.rollout)
                else:
                    self.log.warning("already promoted: %s; clear this task so that promote follows", refusal)
                return
