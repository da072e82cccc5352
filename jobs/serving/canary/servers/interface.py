"""What the controller asks of the inference servers of one tier, wherever they run.

A tier is a number of servers that hold the same releases. On one machine the tier of the champion is that of the
canary, too (`servers.local`); on a cluster they are two (`servers.pods`), so that a canary cannot take the champion's
memory or cores.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Protocol

from include.release.rollouts import Drill, LiveRelease, Release
from jobs.serving.canary.servers.golden import GoldenPrompt
from jobs.serving.triton import repository
from jobs.serving.triton.client import Answer, TritonError
from jobs.serving.triton.config import DEFAULT, Rehearsal

PROBE = "ping"
"""The controller's own request, which shows whether a release answers; it asks for a single token."""


class Servers(Protocol):
    """The servers of a tier. Every call raises TritonError where none of them answers.

    Attributes:
        name: for messages.
        collecting: by release, a lock that is held while the release is unloaded and removed because no target needs
            it; who needs it from now on records that under the lock.
    """

    name: str
    collecting: defaultdict[str, asyncio.Lock]

    async def live(self) -> bool:
        """Return whether any server answers at all."""

    async def loaded(self) -> set[str]:
        """Return the releases that at least one server has ready."""

    async def not_ready(self, name: str, serving: str | None = None) -> list[str]:
        """Return the servers that answer and do not have a release ready.

        Args:
            serving: count only servers that have this release ready, and so take its requests now; all, where none
                has it.
        """

    async def unreachable(self) -> dict[str, TritonError]:
        """Return the servers that do not report their releases, and why; clients are not sent there. Raises nothing.

        The error is a NotAvailableError where a server does not answer, another one where it answers with an error.
        """

    async def installed(self) -> set[str]:
        """Return the releases in the repository of any server."""

    async def has_engine(self, release: Release, *, any_server: bool = False) -> bool:
        """Return whether every server (or any) has the release's engine, and need not read it from the store."""

    async def release_name(self, live: LiveRelease) -> str:
        """Return the name under which `deploy` will load a release; that of a former release may have changed."""

    async def deploy(
        self, live: LiveRelease, serving: str | None = None, *, any_server: bool = False, outage: float = 60.0
    ) -> None:
        """Put a named release into the repository, and load it, on every server that `not_ready` returns.

        An engine that is installed already is read again. A server that refuses does not keep the others from loading
        the release.

        Args:
            any_server: return as soon as one server has it; the others go on meanwhile.
            outage: seconds after which an unreachable server is not waited for any longer.

        Raises:
            ArtifactError: the engine is gone from the store, or the copy of it was altered.
            TritonError: it does not load.
        """

    async def start_deploy(self, live: LiveRelease, beside: str | None = None) -> None:
        """Do the same without waiting where there are several servers: a new one may read a large engine for minutes.

        Args:
            beside: only on servers that have this release ready; on all, where it is None.
        """

    async def reload(self, name: str) -> None:
        """Replace the process of a release on each server where it does not answer a real request."""

    async def unload(self, name: str) -> None:
        """Unload a release on all servers, after the requests in flight."""

    async def remove(self, name: str) -> None:
        """Remove a release, which no server has loaded, from every repository."""

    async def probe(self, name: str, seconds: float, *, any_server: bool = False) -> TritonError | None:
        """Return None where every server (or any) that has a release answers a real request in time, else an error."""

    async def generate(self, name: str, *, messages: Sequence[dict[str, Any]], timeout: float) -> Answer:
        """Send one real, greedy request to one server."""

    async def golden(self, release: Release) -> list[GoldenPrompt]:
        """Return the golden prompts of an installed engine. Raises DataError."""

    async def set_readiness(self, names: set[str]) -> None:
        """Set the releases that a server has to have before clients are sent to it."""


def release_name(release: Release, drill: Drill) -> str:
    """Return the name that a release gets in Triton's repository today."""
    return repository.release_name(release, Rehearsal(drill=drill), DEFAULT)
