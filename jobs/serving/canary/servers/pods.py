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
from jobs.serving.log import log
from jobs.serving.triton.agent_client import Agent, AgentState
from jobs.serving.triton.client import Answer, NotAvailableError, TritonError

_LONGEST_PAUSE_SECONDS = 60.0
"""The longest pause before a release is deployed again to a pod that refused it."""

_CHECK_SECONDS = 2.0
"""Between two checks that the pods to which a release is being deployed are still reachable."""


class Pods:
    """Tritons of a cluster, each with an agent beside it (`jobs.serving.triton.agent`).

    Pods come and go: a new one is empty, is not ready for clients until it has the releases of `set_readiness`, and
    gets these from `deploy` or `start_deploy`, which may be called again at any time. No call waits for a pod that does
    not answer, or that is terminating. A release's name comes from the controller, so that pods of two images can serve
    the same release while the one replaces the other.

    Args:
        find: returns the agents that exist now, by address.
        name_of: returns the name that a release gets.
    """

    def __init__(
        self,
        name: str,
        find: Callable[[], Awaitable[dict[str, Agent]]],
        name_of: Callable[[Release, Drill], str] = release_name,
    ) -> None:
        self.name = name
        self.collecting: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._find = find
        self._name_of = name_of
        self._deploying: dict[tuple[str, str], asyncio.Task[None]] = {}
        self._refused: dict[tuple[str, str], tuple[int, float]] = {}
        """By pod and release: number of refusals in a row, and when the next try may be."""
        self._turn = count()
        self._unresponsive: dict[str, set[str]] = {}
        """By release: the pods that have it loaded, and did not answer the last probe."""
        self._unreachable: set[str] = set()

    async def live(self) -> bool:
        return any(isinstance(state, AgentState) for state in (await self._all()).values())

    async def loaded(self) -> set[str]:
        return {name for state in (await self._states()).values() for name in state.ready}

    async def not_ready(self, name: str, serving: str | None = None) -> list[str]:
        states = await self._states()
        return [pod for pod, state in _pods_serving(states, serving).items() if name not in state.ready]

    async def unreachable(self) -> dict[str, TritonError]:
        return {pod: state for pod, state in (await self._all()).items() if isinstance(state, TritonError)}

    async def installed(self) -> set[str]:
        return {name for state in (await self._states()).values() for name in state.installed}

    async def has_engine(self, release: Release, *, any_server: bool = False) -> bool:
        engine = release.engine.digest[:16]
        enough = any if any_server else all
        return enough(engine in state.engines for state in (await self._states()).values())

    async def release_name(self, live: LiveRelease) -> str:
        return live.name or await asyncio.to_thread(self._name_of, live.release, live.drill)

    async def deploy(
        self, live: LiveRelease, serving: str | None = None, *, any_server: bool = False, outage: float = 60.0
    ) -> None:
        states = await self._states()
        if any_server and any(live.name in state.ready for state in states.values()):
            await self.start_deploy(live)
            return
        not_ready = [pod for pod, state in _pods_serving(states, serving).items() if live.name not in state.ready]
        deploying = {
            pod: self._start(pod, agent, live) for pod, agent in (await self._find()).items() if pod in not_ready
        }
        await self._wait_for(deploying, any_server, outage)

    async def _wait_for(self, deploying: dict[str, asyncio.Task[None]], any_server: bool, outage: float) -> None:
        """Wait for deployments, without those to pods that are unreachable for longer than `outage` seconds."""
        loop = asyncio.get_running_loop()
        last_seen = dict.fromkeys(deploying, loop.time())

        def any_has_it() -> bool:
            return any(task.done() and not task.cancelled() and task.exception() is None for task in deploying.values())

        while waiting := {pod: task for pod, task in deploying.items() if not task.done()}:
            ended, _ = await asyncio.wait(waiting.values(), timeout=_CHECK_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            if any_server and any_has_it():
                return
            if ended:
                continue
            states = await self._all()
            for pod, task in waiting.items():
                if isinstance(states.get(pod), AgentState):
                    last_seen[pod] = loop.time()
                elif loop.time() - last_seen[pod] > outage:
                    task.cancel()
                    await asyncio.wait((task,))
        if not (any_server and any_has_it()):
            _raise_failure([_outcome(pod, task) for pod, task in deploying.items()])

    async def start_deploy(self, live: LiveRelease, beside: str | None = None) -> None:
        now = asyncio.get_running_loop().time()
        states, agents = await self._states(), await self._find()
        for pod, state in states.items():
            if live.name in state.ready or pod not in agents or (beside is not None and beside not in state.ready):
                continue
            if now >= self._refused.get((pod, live.name), (0, 0.0))[1]:
                self._start(pod, agents[pod], live)

    def _start(self, pod: str, agent: Agent, live: LiveRelease) -> asyncio.Task[None]:
        """Return the task that deploys a release to a pod, of which there is one however many wait for it."""
        key = (pod, live.name)

        async def deploy() -> None:
            await agent.install(live.name, live.release, live.drill)
            await agent.load(live.name)

        def ended(task: asyncio.Task[None]) -> None:
            del self._deploying[key]
            error = _outcome(pod, task)
            if error is None:
                self._refused.pop(key, None)
                return
            tries = self._refused.get(key, (0, 0.0))[0] + 1
            pause = min(_LONGEST_PAUSE_SECONDS, 2.0**tries)
            self._refused[key] = (tries, asyncio.get_running_loop().time() + pause)
            log("deploy_failed", tier=self.name, pod=pod, release=live.name, error=error)

        if key not in self._deploying:
            log("deploy", tier=self.name, pod=pod, release=live.name)
            self._deploying[key] = asyncio.create_task(deploy())
            self._deploying[key].add_done_callback(ended)
        return self._deploying[key]

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

    async def probe(self, name: str, seconds: float, *, any_server: bool = False) -> TritonError | None:
        try:
            agents = await self._agents_with(name)
        except TritonError as error:
            return error
        problems = await asyncio.gather(
            *(agent.probe(name, PROBE, timeout=seconds) for agent in agents.values()), return_exceptions=True
        )
        errors = {}
        for pod, problem in zip(agents, problems, strict=True):
            if isinstance(problem, TritonError):
                errors[pod] = problem
            elif problem is not None:
                raise problem
        self._unresponsive[name] = set(errors)
        if any_server and len(errors) < len(agents):
            return None
        return next(iter(errors.values()), None)

    async def generate(self, name: str, *, messages: Sequence[dict[str, Any]], timeout: float) -> Answer:
        agents = await self._agents_with(name)
        unresponsive = self._unresponsive.get(name, set())
        asked = [agent for pod, agent in agents.items() if pod not in unresponsive] or list(agents.values())
        return await asked[next(self._turn) % len(asked)].generate(name, messages=messages, timeout=timeout)

    async def golden(self, release: Release) -> list[GoldenPrompt]:
        engine = release.engine.digest[:16]
        agents = await self._find()
        for pod, state in (await self._states()).items():
            if engine in state.engines and pod in agents:
                return parse_golden(await agents[pod].golden(engine), f"{GOLDEN} of {engine} in {pod}")
        raise NotAvailableError(f"no pod of {self.name} has the engine {engine} any more")

    async def set_readiness(self, names: set[str]) -> None:
        await self._everywhere(lambda agent: agent.serve(names))

    async def _agents_with(self, name: str) -> dict[str, Agent]:
        agents, states = await self._find(), await self._states()
        having = {pod: agents[pod] for pod, state in states.items() if name in state.ready and pod in agents}
        if not having:
            raise NotAvailableError(f"no pod of {self.name} has {name} loaded")
        return having

    async def _states(self) -> dict[str, AgentState]:
        """Return the state of the pods that answer. Raises NotAvailableError where none does."""
        found = await self._all()
        states = {pod: state for pod, state in found.items() if isinstance(state, AgentState)}
        if not states:
            why = _reason(found) or "there is none, see that its Deployment runs"
            raise NotAvailableError(f"no pod of {self.name} answers: {why}")
        return states

    async def _all(self) -> dict[str, AgentState | TritonError]:
        """Return, for every pod that is not terminating, its state, or the error in place of it."""
        agents = await self._find()

        async def state(pod: str, agent: Agent) -> AgentState | TritonError:
            try:
                found = await agent.state()
            except TritonError as error:
                return error
            unreachable = NotAvailableError(f"{pod}: its Triton does not answer")
            return found if found.live or found.leaving else unreachable

        found = dict(zip(agents, await asyncio.gather(*map(state, agents, agents.values())), strict=True))
        self._log_unreachable({pod for pod, state in found.items() if isinstance(state, TritonError)}, _reason(found))
        return {pod: state for pod, state in found.items() if isinstance(state, TritonError) or not state.leaving}

    def _log_unreachable(self, unreachable: set[str], reason: str | None) -> None:
        if unreachable != self._unreachable:
            self._unreachable = unreachable
            log("pods", tier=self.name, unreachable=",".join(sorted(unreachable)) or "none", reason=reason or "none")

    async def _everywhere(self, work: Callable[[Agent], Awaitable[Any]]) -> None:
        states = await self._states()
        await self._each({pod: work(agent) for pod, agent in (await self._find()).items() if pod in states})

    async def _each(self, work: dict[str, Awaitable[Any]]) -> None:
        """Wait for all pods, then raise the first error; unreachable pods are ignored, unless all are."""
        results = await asyncio.gather(*work.values(), return_exceptions=True)
        _raise_failure([result if isinstance(result, BaseException) else None for result in results])


def _raise_failure(outcomes: list[BaseException | None]) -> None:
    problems = [outcome for outcome in outcomes if outcome is not None]
    for problem in problems:
        if not isinstance(problem, NotAvailableError):
            raise problem
    if problems and len(problems) == len(outcomes):
        raise problems[0]


def _outcome(pod: str, task: asyncio.Task[None]) -> BaseException | None:
    """Return why a deployment failed, None where it did not; a cancelled one is that to an unreachable pod."""
    return NotAvailableError(f"{pod} became unreachable, and was given up") if task.cancelled() else task.exception()


def _reason(found: Mapping[str, AgentState | TritonError]) -> str | None:
    """Return why a pod is unreachable, rather an error that one answered than that one did not answer."""
    errors = [state for state in found.values() if isinstance(state, TritonError)]
    errors.sort(key=lambda error: isinstance(error, NotAvailableError))
    return str(errors[0]) if errors else None


def _pods_serving(states: dict[str, AgentState], name: str | None) -> dict[str, AgentState]:
    """Return the pods that take a release's requests; all, where none does."""
    return {pod: state for pod, state in states.items() if name in state.ready} or states
