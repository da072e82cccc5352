"""What the controller asks of whatever leads requests to champion and canary.

A router (`traffic.router`), or a gateway with two of them (`traffic.gateway`).
"""

from __future__ import annotations

from typing import Any, Protocol

from jobs.serving.router.routes import Split

TIMEOUT_SECONDS = 5.0


class RouterError(Exception):
    """The router could not be asked, or its answer is a fault or makes no sense."""


class ConflictError(RouterError):
    """The router refused: somebody else's lease, or its routes are not those that were last seen."""


class Traffic(Protocol):
    """What leads a target's requests to champion and canary: a router, or a gateway with two (`traffic.gateway`).

    Every call raises RouterError where it does not answer.
    """

    async def state(self) -> dict[str, Any]:
        """{"boot", "targets": {target: …}}."""

    async def routed(self) -> dict[str, set[str]]:
        """{"champion", "canary"}: the releases that clients are sent to now, whoever set that, and however long ago."""

    def refuses(self, target: str) -> str | None:
        """Why this target can never be led here; None where it can."""

    async def put(self, target: str, route: Split, generation: int, holder: str) -> dict[str, Any]:
        """Set a target's route, `generation` being the one last seen (0 where it has none).

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
        """{"boot", "generations": […]}, cumulative since the boot."""

    async def samples(self, target: str, after: int) -> dict[str, Any]:
        """{"boot", "samples": […], "lost"}: those with a sequence number above `after`."""


def releases(*states: dict[str, Any]) -> dict[str, set[str]]:
    """What the targets in these states name, by arm; a canary also where no weight is in force now."""
    targets = [target for state in states for target in state["targets"].values()]
    return {arm: {target[arm] for target in targets if target[arm]} for arm in ("champion", "canary")}
