"""The inference servers of one tier as the controller sees them: the Triton of this machine, or pods with agents.

A tier is a number of servers that hold the same releases. On one machine the tier of the champion is that of the
canary, too; on a cluster they are two, so that a canary cannot take the champion's memory or cores.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, Protocol, TypeVar

from include.rollouts import Drill, LiveRelease, Release
from jobs.canary.quality import GOLDEN, GoldenPrompt, parse_golden, read_golden
from jobs.router.log import log
from jobs.triton import repository
from jobs.triton.client import READY, Answer, NotAvailableError, TritonError
from jobs.triton.config import DEFAULT, Rehearsal
from jobs.triton.remote import Agent, AgentState

T = TypeVar("T")

PROBE = "ping"
"""What the controller asks to see whether a release answers; a single token of answer will do."""


class Servers(Protocol):
    """What is asked of a tier. Every call raises TritonError where no server of it answers.

    Attributes:
        name: for messages.
    """

    name: str

    async def live(self) -> bool:
        """Whether any server answers at all."""

    async def loaded(self) -> set[str]:
        """Releases that at least one server has ready."""

    async def lacking(self, name: str) -> list[str]:
        """The servers that do not have a release ready; those that do not answer are among them."""

    async def installed(self) -> set[str]:
        """Releases in the repository of any server."""

    async def holds(self, release: Release) -> bool:
        """Whether no server would have to read the release's engine from the store."""

    async def install(self, live: LiveRelease) -> str:
        """Put a release into every repository, and return its name. Raises ArtifactError."""

    async def restore(self, live: LiveRelease) -> str:
        """The same for one that was live before; where it lies there still, it is read again. Raises ArtifactError."""

    async def load(self, name: str) -> None:
        """Load it on every server that answers."""

    async def reload(self, name: str) -> None:
        """Put a fresh process in the place of each that does not answer a real request."""

    async def unload(self, name: str) -> None:
        """Unload it everywhere, after the requests in flight."""

    async def remove(self, name: str) -> None:
        """Take it out of every repository; it is loaded nowhere."""

    async def problem(self, name: str, seconds: float) -> TritonError | None:
        """None where every server that has it answers a real request in time; otherwise why one does not."""

    async def generate(self, name: str, *, messages: Sequence[dict[str, Any]], timeout: float) -> Answer:
        """One real, greedy request to one server."""

    async def golden(self, release: Release) -> list[GoldenPrompt]:
        """The golden prompts of an installed engine. Raises DataError."""

    async def serve(self, names: set[str]) -> None:
        """Say what a server has to have before it may take clients' requests."""


class Triton(Protocol):
    """What is asked of one Triton (see `jobs.triton.client.TritonClient`)."""

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
class Here:
    """One Triton of this machine, whose repository is the serving folder.

    Attributes:
        folder: the serving side's folder.
    """

    folder: Path
    triton: Triton
    name: str = "Triton"
    put: Callable[[Path, Release, Drill], str] = repository.install
    take: Callable[[Path, str], None] = repository.remove
    verify: Callable[[Path, Release], None] = repository.verify

    async def live(self) -> bool:
        return await self.triton.live()

    async def loaded(self) -> set[str]:
        return {name for name, state in (await self.triton.states()).items() if state == READY}

    async def lacking(self, name: str) -> list[str]:
        return [] if name in await self.loaded() else [self.name]

    async def installed(self) -> set[str]:
        models = self.folder / repository.MODELS
        return {path.name for path in models.iterdir()} if models.is_dir() else set()

    async def holds(self, release: Release) -> bool:
        return self._engine(release).is_dir()

    async def install(self, live: LiveRelease) -> str:
        return await asyncio.to_thread(self.put, self.folder, live.release, live.drill)

    async def restore(self, live: LiveRelease) -> str:
        if live.name in await self.installed() and await self.holds(live.release):
            await asyncio.to_thread(self.verify, self.folder, live.release)
            return live.name
        return await self.install(live)

    async def load(self, name: str) -> None:
        await self.triton.load(name)

    async def reload(self, name: str) -> None:
        await self.triton.reload(name)

    async def unload(self, name: str) -> None:
        await self.triton.unload(name)

    async def remove(self, name: str) -> None:
        await asyncio.to_thread(self.take, self.folder, name)

    async def problem(self, name: str, seconds: float) -> TritonError | None:
        try:
            await self.triton.generate(name, text=PROBE, max_tokens=1, timeout=seconds)
        except TritonError as error:
            return error
        return None

    async def generate(self, name: str, *, messages: Sequence[dict[str, Any]], timeout: float) -> Answer:
        return await self.triton.generate(name, messages=messages, timeout=timeout)

    async def golden(self, release: Release) -> list[GoldenPrompt]:
        return await asyncio.to_thread(read_golden, self._engine(release))

    async def serve(self, names: set[str]) -> None:
        """Nothing else decides here who asks this Triton."""

    def _engine(self, release: Release) -> Path:
        return self.folder / repository.ENGINES / release.engine.digest[:16]


class Pods:
    """Tritons of a cluster, each with an agent beside it (`jobs.triton.agent`).

    Pods come and go: a new one has nothing, takes no requests until it has what `serve` says, and is given that by
    `restore` and `load`, which may be said again at any time. A pod that does not answer, or is on its way out, keeps
    nobody waiting. A release's name comes from this side, so that pods of two images can serve the same release while
    the one replaces the other.

    Args:
        find: the agents that there are now, by address.
    """

    def __init__(self, name: str, find: Callable[[], Awaitable[dict[str, Agent]]]) -> None:
        self.name = name
        self._find = find
        self._turn = count()
        self._away: set[str] = set()

    async def live(self) -> bool:
        return any(state.live for state in (await self._all()).values() if state is not None)

    async def loaded(self) -> set[str]:
        return {name for state in (await self._states()).values() for name in state.ready}

    async def lacking(self, name: str) -> list[str]:
        found = await self._all()
        return [pod for pod, state in found.items() if state is None or name not in state.ready] or (
            [] if found else [self.name]
        )

    async def installed(self) -> set[str]:
        return {name for state in (await self._states()).values() for name in state.installed}

    async def holds(self, release: Release) -> bool:
        engine = release.engine.digest[:16]
        return all(engine in state.engines for state in (await self._states()).values())

    async def install(self, live: LiveRelease) -> str:
        name = live.name or repository.release_name(live.release, Rehearsal(drill=live.drill), DEFAULT)
        await self._everywhere(lambda agent: agent.install(name, live.release, live.drill))
        return name

    async def restore(self, live: LiveRelease) -> str:
        return await self.install(live)

    async def load(self, name: str) -> None:
        await self._everywhere(lambda agent: agent.load(name))

    async def reload(self, name: str) -> None:
        async def where_needed(agent: Agent) -> None:
            try:
                await agent.probe(name, PROBE)
            except TritonError:
                await agent.reload(name)

        await self._everywhere(where_needed)

    async def unload(self, name: str) -> None:
        await self._everywhere(lambda agent: agent.unload(name))

    async def remove(self, name: str) -> None:
        await self._everywhere(lambda agent: agent.remove(name))

    async def problem(self, name: str, seconds: float) -> TritonError | None:
        try:
            having = await self._having(name)
        except TritonError as error:
            return error
        problems = await asyncio.gather(
            *(agent.probe(name, PROBE, timeout=seconds) for agent in having), return_exceptions=True
        )
        for problem in problems:
            if isinstance(problem, TritonError):
                return problem
            if problem is not None:
                raise problem
        return None

    async def generate(self, name: str, *, messages: Sequence[dict[str, Any]], timeout: float) -> Answer:
        having = await self._having(name)
        return await having[next(self._turn) % len(having)].generate(name, messages=messages, timeout=timeout)

    async def golden(self, release: Release) -> list[GoldenPrompt]:
        engine = release.engine.digest[:16]
        agents = await self._find()
        for pod, state in (await self._states()).items():
            if engine in state.engines:
                return parse_golden(await agents[pod].golden(engine), f"{GOLDEN} of {engine} in {pod}")
        raise NotAvailableError(f"no pod of {self.name} has the engine {engine} any more")

    async def serve(self, names: set[str]) -> None:
        await self._everywhere(lambda agent: agent.serve(names))

    async def _having(self, name: str) -> list[Agent]:
        agents = await self._find()
        having = [agents[pod] for pod, state in (await self._states()).items() if name in state.ready and pod in agents]
        if not having:
            raise NotAvailableError(f"no pod of {self.name} has {name} loaded")
        return having

    async def _states(self) -> dict[str, AgentState]:
        """Of the pods that answer. Raises NotAvailableError where none does."""
        states = {pod: state for pod, state in (await self._all()).items() if state is not None and state.live}
        if not states:
            raise NotAvailableError(f"no pod of {self.name} answers: see that its Deployment runs")
        return states

    async def _all(self) -> dict[str, AgentState | None]:
        """Every pod that is not on its way out; None where it does not answer."""
        agents = await self._find()

        async def state(agent: Agent) -> AgentState | None:
            try:
                return await agent.state()
            except TritonError:
                return None

        found = dict(zip(agents, await asyncio.gather(*map(state, agents.values())), strict=True))
        self._tell_away({pod for pod, state in found.items() if state is None or not (state.live or state.leaving)})
        return {pod: state for pod, state in found.items() if state is None or not state.leaving}

    def _tell_away(self, away: set[str]) -> None:
        if away != self._away:
            self._away = away
            log("pods", tier=self.name, away=",".join(sorted(away)) or "none")

    async def _everywhere(self, work: Callable[[Agent], Awaitable[Any]]) -> None:
        """Raises what a pod answers; those that are away are passed over, unless all are."""
        states = await self._states()
        agents = {pod: agent for pod, agent in (await self._find()).items() if pod in states}
        results = await asyncio.gather(*map(work, agents.values()), return_exceptions=True)
        problems = [result for result in results if isinstance(result, BaseException)]
        for problem in problems:
            if not isinstance(problem, NotAvailableError):
                raise problem
        if len(problems) == len(results):
            raise problems[0] if problems else NotAvailableError(f"no pod of {self.name} answers")
