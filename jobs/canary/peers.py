"""What the controller works with: Triton, its repository, the router, the store; and how patient it is with them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

from include.rollouts import Drill, Release
from jobs.canary.router import Router, RouterError
from jobs.router.log import log
from jobs.triton import repository
from jobs.triton.client import Answer, TritonError

T = TypeVar("T")

PROBE = "ping"
"""What the controller asks to see whether a release answers; a single token of answer will do."""


class Triton(Protocol):
    """What is asked of Triton (see `jobs.triton.client.Triton`)."""

    async def live(self) -> bool: ...
    async def states(self) -> dict[str, str]: ...
    async def load(self, name: str) -> None: ...
    async def unload(self, name: str) -> None: ...
    async def generate(
        self,
        name: str,
        *,
        text: str | None = None,
        messages: list[dict[str, Any]] | None = None,
        max_tokens: int | None = None,
        timeout: float = ...,
    ) -> Answer: ...


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


@dataclass
class Peers:
    """Everything outside the controller.

    Attributes:
        folder: the serving side's folder.
        store: root URI of the store that evidence goes to.
        boot: names this life of the controller.
        repository_lock: held while a release is put into Triton's repository and while unneeded ones are removed.
    """

    folder: Path
    router: Router
    triton: Triton
    store: str
    boot: str
    timing: Timing = Timing()
    install: Callable[[Path, Release, Drill], str] = repository.install
    remove: Callable[[Path, str], None] = repository.remove
    verify: Callable[[Path, Release], None] = repository.verify
    repository_lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    def installed(self) -> set[str]:
        """Names in Triton's repository."""
        models = self.folder / repository.MODELS
        return {path.name for path in models.iterdir()} if models.is_dir() else set()

    def engine(self, release: Release) -> Path:
        """The private copy of a release's engine, once it is installed."""
        return self.folder / repository.ENGINES / release.engine.digest[:16]

    async def loaded(self) -> set[str]:
        """Names of the models that Triton has ready. Raises TritonError where it does not answer."""
        return {name for name, state in (await self.triton.states()).items() if state == "READY"}

    async def problem(self, name: str) -> TritonError | None:
        """None where the model answers a real request; otherwise why it does not."""
        try:
            await self.triton.generate(name, text=PROBE, max_tokens=1, timeout=self.timing.probe)
        except TritonError as error:
            return error
        return None

    async def until_done(self, what: str, attempt: Callable[[], Awaitable[T]]) -> T:
        """Repeat what has to succeed until the peers let it, saying so once."""
        told = False
        while True:
            try:
                return await attempt()
            except (RouterError, TritonError) as error:
                if not told:
                    log("waiting", what=what, error=error)
                    told = True
                await asyncio.sleep(self.timing.retry)
