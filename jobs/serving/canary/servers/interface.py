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
"""What the controller asks to see whether a release answers; a single token of answer will do."""


class Servers(Protocol):
    """What is asked of a tier. Every call raises TritonError where no server of it answers.

    Attributes:
        name: for messages.
        collecting: by release, held while it is unloaded or removed because nobody needs it; whoever wants it kept
            says so with the lock held.
    """

    name: str
    collecting: defaultdict[str, asyncio.Lock]

    async def live(self) -> bool:
        """Whether any server answers at all."""

    async def loaded(self) -> set[str]:
        """Releases that at least one server has ready."""

    async def lacking(self, name: str, instead: str | None = None) -> list[str]:
        """The servers that answer, and do not have a release ready.

        Args:
            instead: only those matter that have this one ready, and so take its requests now; all, where none has.
        """

    async def silent(self) -> dict[str, TritonError]:
        """The servers that do not say what they have, and why; clients are not sent there. Raises nothing.

        NotAvailableError stands for no answer, any other error for what a server answered.
        """

    async def installed(self) -> set[str]:
        """Releases in the repository of any server."""

    async def holds(self, release: Release, *, one_will_do: bool = False) -> bool:
        """Whether no server, or not every server, would have to read the release's engine from the store."""

    async def called(self, live: LiveRelease) -> str:
        """The name under which `bring` will put it; that of one which was live before may be another by now."""

    async def bring(
        self, live: LiveRelease, instead: str | None = None, *, one_will_do: bool = False, patience: float = 60.0
    ) -> None:
        """Put a named release into the repository, and load it, on every server that `lacking` names.

        An engine that lies there still is read again. A server that refuses does not keep the others from having it.

        Args:
            one_will_do: returns as soon as one server has it; the others are given it meanwhile.
            patience: seconds for which a server may be silent before it is not waited for any longer.

        Raises:
            ArtifactError: the engine is gone from the store, or the copy of it was altered.
            TritonError: it does not load.
        """

    async def supply(self, live: LiveRelease, beside: str | None = None) -> None:
        """The same, without waiting for servers among several: a new one may read a large engine for minutes.

        Args:
            beside: only servers that have this one ready are given it; all, where it is None.
        """

    async def reload(self, name: str) -> None:
        """Put a fresh process in the place of each that does not answer a real request."""

    async def unload(self, name: str) -> None:
        """Unload it everywhere, after the requests in flight."""

    async def remove(self, name: str) -> None:
        """Take it out of every repository; it is loaded nowhere."""

    async def problem(self, name: str, seconds: float, *, one_will_do: bool = False) -> TritonError | None:
        """None where every server (or one) that has it answers a real request in time; otherwise why one does not."""

    async def generate(self, name: str, *, messages: Sequence[dict[str, Any]], timeout: float) -> Answer:
        """One real, greedy request to one server."""

    async def golden(self, release: Release) -> list[GoldenPrompt]:
        """The golden prompts of an installed engine. Raises DataError."""

    async def serve(self, names: set[str]) -> None:
        """Say what a server has to have before it may take clients' requests."""


def release_name(release: Release, drill: Drill) -> str:
    return repository.release_name(release, Rehearsal(drill=drill), DEFAULT)
