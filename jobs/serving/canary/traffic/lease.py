"""The lease on a target, without which no canary gets traffic; a task of its own renews it."""

from __future__ import annotations

import asyncio
import contextlib
from types import TracebackType
from typing import Self

from jobs.serving.canary.traffic.interface import ConflictError, RouterError, TrafficRouter
from jobs.serving.log import log

_RENEWALS = 4
"""Number of renewals within the time after which the lease lapses."""


class Lease:
    """A lease that is held and renewed while the context lasts.

    A holder is `<rollout>@<boot>`. A lease of an earlier controller on the same rollout is taken over, which is safe:
    `Records.lock` ensures that one controller at a time works on a folder.
    """

    def __init__(self, router: TrafficRouter, target: str, rollout: str, boot: str, seconds: float) -> None:
        self.holder = f"{rollout}@{boot}"
        self._router = router
        self._target = target
        self._prefix = f"{rollout}@"
        self._seconds = seconds

    async def __aenter__(self) -> Self:
        """Take the lease. Raises RouterError where that fails for longer than another's lease would last."""
        loop = asyncio.get_running_loop()
        until = loop.time() + 2 * self._seconds
        while True:
            try:
                await self._router.lease(self._target, self.holder, self._seconds)
                break
            except RouterError as error:
                if loop.time() > until:
                    raise
                if isinstance(error, ConflictError):
                    with contextlib.suppress(RouterError):
                        await self._take_over()
            await asyncio.sleep(self._seconds / _RENEWALS)
        self._task = asyncio.create_task(self._renew())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        with contextlib.suppress(RouterError):
            await self._router.release(self._target, self.holder)

    async def _take_over(self) -> None:
        found = (await self._router.state())["targets"].get(self._target)
        holder = found["lease"]["holder"] if found else None
        if holder and holder.startswith(self._prefix):
            await self._router.release(self._target, holder)

    async def _renew(self) -> None:
        logged = False
        while True:
            await asyncio.sleep(self._seconds / _RENEWALS)
            try:
                await self._router.lease(self._target, self.holder, self._seconds)
                logged = False
            except RouterError as error:
                if not logged:
                    log("lease_not_renewed", target=self._target, error=error)
                logged = True
