"""The Tritons of a cluster's tier, each in a pod with an agent beside it."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from itertools import count
from typing import Any

from include.release.rollouts import Drill, LiveRelease, Release
from jobs.serving.canary.servers.golden import GOLDEN, GoldenPrompt, parse_golden
from jobs.serving.canary.servers.interface import PROBE, release_name
from jobs.serving.router.log import log
from jobs.serving.triton.client import Answer, NotAvailableError, TritonError
from jobs.serving.triton.remote import Agent, AgentState

_LONGEST_PAUSE_SECONDS = 60.0
"""Before a pod that refuses a release is given it again."""

_LOOK_SECONDS = 2.0
"""Between two looks at whether the pods that are being given a release are still there."""


class Pods:
    """Tritons of a cluster, each with an agent beside it (`jobs.serving.triton.agent`).

    Pods come and go: a new one has nothing, takes no requests until it has what `serve` says, and is given that by
    `bring` or `supply`, which may be said again at any time. A pod that does not answer, or is on its way out, keeps
    nobody waiting. A release's name comes from this side, so that pods of two images can serve the same release while
    the one replaces the other.

    Args:
        find: the agents that there are now, by address.
        call: the name that a release gets.
    """

    def __init__(
        self,
        name: str,
        find: Callable[[], Awaitable[dict[str, Agent]]],
        call: Callable[[Release, Drill], str] = release_name,
    ) -> None:
        self.name = name
        self.collecting: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._find = find
        self._call = call
        self._giving: dict[tuple[str, str], asyncio.Task[None]] = {}
        self._refused: dict[tuple[str, str], tuple[int, float]] = {}
        """By pod and release: how often in a row it was refused, and when it is tried again."""
        self._turn = count()
        self._mute: dict[str, set[str]] = {}
        """By release: the pods that have it and gave no answer when they were last asked for one."""
        self._away: set[str] = set()

    async def live(self) -> bool:
        return any(isinstance(state, AgentState) for state in (await self._all()).values())

    async def loaded(self) -> set[str]:
        return {name for state in (await self._states()).values() for name in state.ready}

    async def lacking(self, name: str, instead: str | None = None) -> list[str]:
        states = await self._states()
        return [pod for pod, state in _taking(states, instead).items() if name not in state.ready]

    async def silent(self) -> dict[str, TritonError]:
        return {pod: state for pod, state in (await self._all()).items() if isinstance(state, TritonError)}

    async def installed(self) -> set[str]:
        return {name for state in (await self._states()).values() for name in state.installed}

    async def holds(self, release: Release, *, one_will_do: bool = False) -> bool:
        engine = release.engine.digest[:16]
        enough = any if one_will_do else all
        return enough(engine in state.engines for state in (await self._states()).values())

    async def called(self, live: LiveRelease) -> str:
        return live.name or await asyncio.to_thread(self._call, live.release, live.drill)

    async def bring(
        self, live: LiveRelease, instead: str | None = None, *, one_will_do: bool = False, patience: float = 60.0
    ) -> None:
        states = await self._states()
        if one_will_do and any(live.name in state.ready for state in states.values()):
            await self.supply(live)
            return
        lacking = [pod for pod, state in _taking(states, instead).items() if live.name not in state.ready]
        giving = {pod: self._give(pod, agent, live) for pod, agent in (await self._find()).items() if pod in lacking}
        await self._given(giving, one_will_do, patience)

    async def _given(self, giving: dict[str, asyncio.Task[None]], one_will_do: bool, patience: float) -> None:
        loop = asyncio.get_running_loop()
        heard = dict.fromkeys(giving, loop.time())

        def one_has_it() -> bool:
            return any(task.done() and not task.cancelled() and task.exception() is None for task in giving.values())

        while waiting := {pod: task for pod, task in giving.items() if not task.done()}:
            ended, _ = await asyncio.wait(waiting.values(), timeout=_LOOK_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            if one_will_do and one_has_it():
                return
            if ended:
                continue
            states = await self._all()
            for pod, task in waiting.items():
                if isinstance(states.get(pod), AgentState):
                    heard[pod] = loop.time()
                elif loop.time() - heard[pod] > patience:
                    task.cancel()
                    await asyncio.wait((task,))
        if not (one_will_do and one_has_it()):
            _settle([_outcome(pod, task) for pod, task in giving.items()])

    async def supply(self, live: LiveRelease, beside: str | None = None) -> None:
        now = asyncio.get_running_loop().time()
        states, agents = await self._states(), await self._find()
        for pod, state in states.items():
            if live.name in state.ready or pod not in agents or (beside is not None and beside not in state.ready):
                continue
            if now >= self._refused.get((pod, live.name), (0, 0.0))[1]:
                self._give(pod, agents[pod], live)

    def _give(self, pod: str, agent: Agent, live: LiveRelease) -> asyncio.Task[None]:
        """Goes on, whoever waits for it: what a pod is being given it is not given twice."""
        key = (pod, live.name)

        async def give() -> None:
            await agent.install(live.name, live.release, live.drill)
            await agent.load(live.name)

        def given(task: asyncio.Task[None]) -> None:
            del self._giving[key]
            error = _outcome(pod, task)
            if error is None:
                self._refused.pop(key, None)
                return
            tries = self._refused.get(key, (0, 0.0))[0] + 1
            pause = min(_LONGEST_PAUSE_SECONDS, 2.0**tries)
            self._refused[key] = (tries, asyncio.get_running_loop().time() + pause)
            log("not_given", tier=self.name, pod=pod, release=live.name, error=error)

        if key not in self._giving:
            log("give", tier=self.name, pod=pod, release=live.name)
            self._giving[key] = asyncio.create_task(give())
            self._giving[key].add_done_callback(given)
        return self._giving[key]

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

    async def problem(self, name: str, seconds: float, *, one_will_do: bool = False) -> TritonError | None:
        try:
            having = await self._having(name)
        except TritonError as error:
            return error
        problems = await asyncio.gather(
            *(agent.probe(name, PROBE, timeout=seconds) for agent in having.values()), return_exceptions=True
        )
        self._mute[name] = {pod for pod, problem in zip(having, problems, strict=True) if problem is not None}
        for problem in problems:
            if problem is not None and not isinstance(problem, TritonError):
                raise problem
        if one_will_do and None in problems:
            return None
        return next((problem for problem in problems if problem is not None), None)

    async def generate(self, name: str, *, messages: Sequence[dict[str, Any]], timeout: float) -> Answer:
        having = await self._having(name)
        mute = self._mute.get(name, set())
        asked = [agent for pod, agent in having.items() if pod not in mute] or list(having.values())
        return await asked[next(self._turn) % len(asked)].generate(name, messages=messages, timeout=timeout)

    async def golden(self, release: Release) -> list[GoldenPrompt]:
        engine = release.engine.digest[:16]
        agents = await self._find()
        for pod, state in (await self._states()).items():
            if engine in state.engines and pod in agents:
                return parse_golden(await agents[pod].golden(engine), f"{GOLDEN} of {engine} in {pod}")
        raise NotAvailableError(f"no pod of {self.name} has the engine {engine} any more")

    async def serve(self, names: set[str]) -> None:
        await self._everywhere(lambda agent: agent.serve(names))

    async def _having(self, name: str) -> dict[str, Agent]:
        agents, states = await self._find(), await self._states()
        having = {pod: agents[pod] for pod, state in states.items() if name in state.ready and pod in agents}
        if not having:
            raise NotAvailableError(f"no pod of {self.name} has {name} loaded")
        return having

    async def _states(self) -> dict[str, AgentState]:
        """Of the pods that answer. Raises NotAvailableError where none does."""
        found = await self._all()
        states = {pod: state for pod, state in found.items() if isinstance(state, AgentState)}
        if not states:
            why = _reason(found) or "there is none, see that its Deployment runs"
            raise NotAvailableError(f"no pod of {self.name} answers: {why}")
        return states

    async def _all(self) -> dict[str, AgentState | TritonError]:
        """Every pod that is not on its way out: what it has, or why it does not say so."""
        agents = await self._find()

        async def state(pod: str, agent: Agent) -> AgentState | TritonError:
            try:
                found = await agent.state()
            except TritonError as error:
                return error
            away = NotAvailableError(f"{pod}: its Triton does not answer")
            return found if found.live or found.leaving else away

        found = dict(zip(agents, await asyncio.gather(*map(state, agents, agents.values())), strict=True))
        self._tell_away({pod for pod, state in found.items() if isinstance(state, TritonError)}, _reason(found))
        return {pod: state for pod, state in found.items() if isinstance(state, TritonError) or not state.leaving}

    def _tell_away(self, away: set[str], reason: str | None) -> None:
        if away != self._away:
            self._away = away
            log("pods", tier=self.name, away=",".join(sorted(away)) or "none", reason=reason or "none")

    async def _everywhere(self, work: Callable[[Agent], Awaitable[Any]]) -> None:
        states = await self._states()
        await self._each({pod: work(agent) for pod, agent in (await self._find()).items() if pod in states})

    async def _each(self, work: dict[str, Awaitable[Any]]) -> None:
        """Raises what a pod answers, once all have; those that are away are passed over, unless all are."""
        results = await asyncio.gather(*work.values(), return_exceptions=True)
        _settle([result if isinstance(result, BaseException) else None for result in results])


def _settle(outcomes: list[BaseException | None]) -> None:
    problems = [outcome for outcome in outcomes if outcome is not None]
    for problem in problems:
        if not isinstance(problem, NotAvailableError):
            raise problem
    if problems and len(problems) == len(outcomes):
        raise problems[0]


def _outcome(pod: str, task: asyncio.Task[None]) -> BaseException | None:
    """None where the pod was given it. Who is given up is as one that does not answer."""
    return NotAvailableError(f"{pod} fell silent and was given up") if task.cancelled() else task.exception()


def _reason(found: Mapping[str, AgentState | TritonError]) -> str | None:
    """Why the first pod that does not say what it has does not; rather what it answered than that it is away."""
    errors = [state for state in found.values() if isinstance(state, TritonError)]
    errors.sort(key=lambda error: isinstance(error, NotAvailableError))
    return str(errors[0]) if errors else None


def _taking(states: dict[str, AgentState], name: str | None) -> dict[str, AgentState]:
    """The pods that take a release's requests; all, where none does."""
    return {pod: state for pod, state in states.items() if name in state.ready} or states
