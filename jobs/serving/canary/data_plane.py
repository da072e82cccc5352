"""What the controller works with: the router, the inference servers, the store; and how patient it is with them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from include.errors import AnemoneError
from jobs.serving.canary.servers.interface import Servers
from jobs.serving.canary.traffic.interface import RouterError, Traffic
from jobs.serving.router.log import log
from jobs.serving.triton.client import TritonError

T = TypeVar("T")


@dataclass(frozen=True)
class Timing:
    """Seconds.

    Attributes:
        tend: between two looks at whether everything is as it should be.
        lease: how long the router lets a canary have traffic after the controller was last heard of.
        patience: with a router or a Triton that does not answer before a rollout is refused or interrupted.
        probe: for the answer to one of the controller's own short requests.
        golden: for the answer to a golden prompt.
        drain: for requests in flight to end before the model that answers them is unloaded.
        retry: between two tries of what has to succeed.
    """

    tend: float = 2.0
    lease: float = 10.0
    patience: float = 60.0
    probe: float = 10.0
    golden: float = 60.0
    drain: float = 120.0
    retry: float = 1.0


class Patience:
    """How long something may be amiss. The clock begins when it is first seen to be, however long the look took."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._since: float | None = None

    def is_over(self, amiss: bool = True) -> bool:
        """Say how it is now; what is well again begins anew."""
        now = asyncio.get_running_loop().time()
        self._since = (self._since if self._since is not None else now) if amiss else None
        return self._since is not None and now - self._since > self._seconds


@dataclass
class Peers:
    """Everything outside the controller.

    Attributes:
        stable, canary: the servers of the champion and those of the canary; the same, where there is one tier.
        store: root URI of the store that evidence goes to.
        boot: names this life of the controller.
    """

    router: Traffic
    stable: Servers
    canary: Servers
    store: str
    boot: str
    timing: Timing = Timing()

    @property
    def tiers(self) -> tuple[Servers, ...]:
        return (self.stable,) if self.stable is self.canary else (self.stable, self.canary)

    async def problem(self, servers: Servers, name: str) -> TritonError | None:
        """None where the model answers a real request; otherwise why it does not."""
        return await servers.problem(name, self.timing.probe)

    async def wait_out(self, awaited: type[Exception], attempt: Callable[[], Awaitable[T]]) -> T:
        """Repeat it while it raises `awaited`; raises that once it has lasted for longer than patience."""
        patience = Patience(self.timing.patience)
        while True:
            try:
                return await attempt()
            except awaited:
                if patience.is_over():
                    raise
            await asyncio.sleep(self.timing.retry)

    async def until_done(self, what: str, attempt: Callable[[], Awaitable[T]]) -> T:
        """Repeat what has to succeed until the peers let it, saying so once."""
        told = False
        while True:
            try:
                return await attempt()
            except (RouterError, AnemoneError, OSError) as error:
                if not told:
                    log("waiting", what=what, error=error)
                    told = True
                await asyncio.sleep(self.timing.retry)
