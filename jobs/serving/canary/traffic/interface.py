"""The interface of a traffic router, which leads requests to champion and canary.

It is a router (`traffic.router`), or a gateway with two of them (`traffic.gateway`).
"""

from __future__ import annotations

from typing import Any, Protocol

from jobs.serving.router.routes import Split

TIMEOUT_SECONDS = 5.0


class RouterError(Exception):
    """The router cannot be reached, or its answer is an error or not understood."""


class ConflictError(RouterError):
    """The router refused: another holds the lease, or the routes have changed since they were read."""


class TrafficRouter(Protocol):
    """Leads a target's requests to champion and canary. Every call raises RouterError where it does not answer."""

    async def state(self) -> dict[str, Any]:
        """Return the routes: {"boot", "targets": {target: …}}."""

    async def routed(self) -> dict[str, set[str]]:
        """Return the releases that clients are sent to now, whoever set that: {"champion": {…}, "canary": {…}}."""

    def refuses(self, target: str) -> str | None:
        """Return why this router can never lead a target's requests, None where it can."""

    async def put(self, target: str, route: Split, generation: int, holder: str) -> dict[str, Any]:
        """Set a target's route.

        Args:
            generation: of the route when it was last read; 0 where there was none.
            holder: of the lease.

        Raises:
            ConflictError: the generation is another by now, or `holder` has no lease and the weight is above 0.
        """

    async def delete(self, target: str) -> None:
        """Take a target out of service; no error where it is not in service."""

    async def lease(self, target: str, holder: str, seconds: float) -> None:
        """Take or renew the lease. Raises ConflictError where another holds it."""

    async def release(self, target: str, holder: str) -> None:
        """Give the lease back; no error where it has lapsed. Raises ConflictError where another holds it."""

    async def counts(self, target: str) -> dict[str, Any]:
        """Return the counts of requests, cumulative since the boot: {"boot", "generations": […]}."""

    async def samples(self, target: str, after: int) -> dict[str, Any]:
        """Return the samples with a sequence number above `after`: {"boot", "samples": […], "lost"}."""


def releases(*states: dict[str, Any]) -> dict[str, set[str]]:
    """Return the releases that the targets in these states name, by arm; a canary also where its weight is 0."""
    targets = [target for state in states for target in state["targets"].values()]
    return {arm: {target[arm] for target in targets if target[arm]} for arm in ("champion", "canary")}
