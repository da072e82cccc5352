"""What the controller controls: the router, the inference servers and the store, and how long it bears their faults."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from include.errors import AnemoneError
from jobs.serving.canary.servers.interface import Servers
from jobs.serving.canary.traffic.interface import RouterError, TrafficRouter
from jobs.serving.log import log
from jobs.serving.triton.client import TritonError

T = TypeVar("T")


@dataclass(frozen=True)
class Timing:
    """Intervals and timeouts, in seconds.

    Attributes:
        resync: between two checks that routes and models are as they should be.
        lease: how long the router lets a canary have traffic after it last heard of the controller.
        outage: how long a router or a Triton may be unreachable before a rollout is refused or interrupted.
        probe: for the answer to one of the controller's own short requests.
        golden: for the answer to a golden prompt.
        drain: for requests in flight to end before the model that answers them is unloaded.
        retry: between two tries of what has to succeed.
    """

    resync: float = 2.0
    lease: float = 10.0
    outage: float = 60.0
    probe: float = 10.0
    golden: float = 60.0
    drain: float = 120.0
    retry: float = 1.0


class Deadline:
    """A limit on how long a failure may last, counted from when it is first reported.

    Args:
        seconds: the longest that it may last.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._since: float | None = None

    def exceeded(self, failing: bool = True) -> bool:
        """Report how it is now, and return whether it has been failing for too long; a success starts it anew."""
        now = asyncio.get_running_loop().time()
        self._since = (self._since if self._since is not None else now) if failing else None
        return self._since is not None and now - self._since > self._seconds


@dataclass
class DataPlane:
    """Everything that the controller acts on.

    Attributes:
        stable, canary: the servers of the champion and those of the canary; the same, where there is one tier.
        store: root URI of the store that evidence goes to.
        boot: names this life of the controller.
    """

    router: TrafficRouter
    stable: Servers
    canary: Servers
    store: str
    boot: str
    timing: Timing = Timing()

    @property
    def tiers(self) -> tuple[Servers, ...]:
        return (self.stable,) if self.stable is self.canary else (self.stable, self.canary)

    async def probe(self, servers: Servers, name: str) -> TritonError | None:
        """Return None where the model answers a real request, otherwise why it does not."""
        return await servers.probe(name, self.timing.probe)

    async def retry_while(self, expected: type[Exception], attempt: Callable[[], Awaitable[T]]) -> T:
        """Repeat an attempt while it raises `expected`, and raise that once it has lasted for `timing.outage`."""
        deadline = Deadline(self.timing.outage)
        while True:
            try:
                return await attempt()
            except expected:
                if deadline.exceeded():
                    raise
            await asyncio.sleep(self.timing.retry)

    async def retry_forever(self, what: str, attempt: Callable[[], Awaitable[T]]) -> T:
        """Repeat an attempt that has to succeed until it does; the first failure is logged."""
        logged = False
        while True:
            try:
                return await attempt()
            except (RouterError, AnemoneError, OSError) as error:
                if not logged:
                    log("waiting", what=what, error=error)
                    logged = True
                await asyncio.sleep(self.timing.retry)
