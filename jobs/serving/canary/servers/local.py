"""The one Triton of this machine."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from include.release.rollouts import Drill, LiveRelease, Release
from jobs.serving.canary.servers.golden import GoldenPrompt, read_golden
from jobs.serving.canary.servers.interface import PROBE, release_name
from jobs.serving.triton import repository
from jobs.serving.triton.client import READY, Answer, NotAvailableError, TritonError


class Triton(Protocol):
    """One Triton (see `jobs.serving.triton.client.TritonClient`)."""

    async def live(self) -> bool: ...
    async def states(self) -> dict[str, str]: ...
    async def load(self, name: str) -> None: ...
    async def unload(self, name: str) -> None: ...
    async def reload(self, name: str) -> None: ...
    async def generate(
        self,
        name: str,
        *,
        text: str | None = None,
        messages: Sequence[dict[str, Any]] | None = None,
        max_tokens: int | None = None,
        timeout: float = ...,
    ) -> Answer: ...


@dataclass
class LocalTriton:
    """The Triton of this machine, whose repository is in the serving folder.

    Attributes:
        folder: the serving side's folder.
    """

    folder: Path
    triton: Triton
    name: str = "Triton"
    install: Callable[[Path, Release, Drill], str] = repository.install
    uninstall: Callable[[Path, str], None] = repository.remove
    verify: Callable[[Path, Release], None] = repository.verify
    name_of: Callable[[Release, Drill], str] = release_name
    collecting: defaultdict[str, asyncio.Lock] = field(default_factory=lambda: defaultdict(asyncio.Lock))

    async def live(self) -> bool:
        return await self.triton.live()

    async def loaded(self) -> set[str]:
        return {name for name, state in (await self.triton.states()).items() if state == READY}

    async def not_ready(self, name: str, serving: str | None = None) -> list[str]:
        return [] if name in await self.loaded() else [self.name]

    async def unreachable(self) -> dict[str, TritonError]:
        return {} if await self.live() else {self.name: NotAvailableError(f"{self.name} does not answer")}

    async def installed(self) -> set[str]:
        models = self.folder / repository.MODELS
        return {path.name for path in models.iterdir()} if models.is_dir() else set()

    async def has_engine(self, release: Release, *, any_server: bool = False) -> bool:
        return self._engine(release).is_dir()

    async def release_name(self, live: LiveRelease) -> str:
        """Return the name; Anemone's code is part of it, so that after an update a removed release gets another."""
        if live.name in await self.installed() and await self.has_engine(live.release):
            return live.name
        return await asyncio.to_thread(self.name_of, live.release, live.drill)

    async def deploy(
        self, live: LiveRelease, serving: str | None = None, *, any_server: bool = False, outage: float = 60.0
    ) -> None:
        if live.name in await self.loaded():
            return
        if live.name in await self.installed() and await self.has_engine(live.release):
            await asyncio.to_thread(self.verify, self.folder, live.release)
        else:
            await asyncio.to_thread(self.install, self.folder, live.release, live.drill)
        await self.triton.load(live.name)

    async def start_deploy(self, live: LiveRelease, beside: str | None = None) -> None:
        if beside is None or beside in await self.loaded():
            await self.deploy(live)

    async def reload(self, name: str) -> None:
        await self.triton.reload(name)

    async def unload(self, name: str) -> None:
        await self.triton.unload(name)

    async def remove(self, name: str) -> None:
        await asyncio.to_thread(self.uninstall, self.folder, name)

    async def probe(self, name: str, seconds: float, *, any_server: bool = False) -> TritonError | None:
        try:
            await self.triton.generate(name, text=PROBE, max_tokens=1, timeout=seconds)
        except TritonError as error:
            return error
        return None

    async def generate(self, name: str, *, messages: Sequence[dict[str, Any]], timeout: float) -> Answer:
        return await self.triton.generate(name, messages=messages, timeout=timeout)

    async def golden(self, release: Release) -> list[GoldenPrompt]:
        return await asyncio.to_thread(read_golden, self._engine(release))

    async def set_readiness(self, names: set[str]) -> None:
        """Do nothing: no Service decides here which server clients are sent to."""

    def _engine(self, release: Release) -> Path:
        return self.folder / repository.ENGINES / release.engine.digest[:16]
