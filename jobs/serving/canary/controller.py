"""All targets and their rollouts: what may be asked of the controller, and the tasks that do it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

from include.errors import AnemoneError
from include.release.rollouts import RETIRE_SECONDS, ControllerState, RolloutRequest, RolloutStatus, TargetStatus
from jobs.serving.canary.data_plane import Peers
from jobs.serving.canary.rollout.runner import Runner
from jobs.serving.canary.servers.interface import Servers
from jobs.serving.canary.state.records import Records, Rollout, TargetRecord
from jobs.serving.canary.target import Target
from jobs.serving.canary.traffic.interface import RouterError
from jobs.serving.router.log import log

HISTORY = timedelta(days=90)
"""How long a rollout that has ended can be asked about; its evidence is in the store, and retention's affair."""


class RefusedError(Exception):
    """What was asked does not fit to how things are; `rollout` is the one that is in the way, if any."""

    def __init__(self, message: str, rollout: str | None = None) -> None:
        super().__init__(message)
        self.rollout = rollout


class UnknownError(Exception):
    """There is no such rollout or target."""


class Controller:
    """The service. Call `start`, then anything else, then `close`; what it does survives any other end."""

    def __init__(self, records: Records, peers: Peers) -> None:
        self._records = records
        self._peers = peers
        self._targets: dict[str, Target] = {}
        self._rollouts: dict[str, Rollout] = {}
        """Ended ones only; the others are with their runner."""
        self._runners: dict[str, list[Runner]] = {}
        self._wake: dict[str, asyncio.Event] = {}
        self._tasks: dict[str, list[asyncio.Task[None]]] = {}
        self._housekeeping: list[asyncio.Task[None]] = []
        self._told: dict[tuple[str, str], str] = {}
        """By event and tier: why it could not be done the last time."""
        self._sequence = 0
        self._retiring = asyncio.Lock()

    async def start(self) -> None:
        """Take up what an earlier life left: promoted rollouts go forward, others lose their traffic and begin again.

        Raises:
            DataError: a target's record is damaged.
        """
        rollouts = self._records.rollouts()
        for record in self._records.targets():
            self._targets[record.target] = Target(record, self._peers, self._records)
        for rollout in rollouts:
            self._sequence = max(self._sequence, rollout.sequence)
            target = self._target(rollout.request.target)
            if rollout.status.ended:
                self._rollouts[rollout.id] = rollout
                continue
            if rollout.status.state == "promoted":
                target.promote(rollout)
                target.route = target.alone()
            self._runners.setdefault(target.name, []).append(self._runner(rollout, target))
        for runners in self._runners.values():
            for runner in runners[:-1]:
                runner.hurry()
        for target in list(self._targets.values()):
            if target.record.retiring:
                self._spawn(target.name, self._clear_away(target))
            else:
                self._work(target)
        # Apart: to unload a release may take as long as its last request.
        for what, work in (("collect", self._keep_house), ("declare", self._declare)):
            self._housekeeping.append(asyncio.create_task(self._always(what, work)))
        log("started", targets=len(self._targets), unfinished=sum(map(len, self._runners.values())))

    async def close(self) -> None:
        """End all tasks; nothing is lost, and the next life goes on."""
        tasks = [*self._housekeeping, *(task for tasks in self._tasks.values() for task in tasks)]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._records.close()

    # What may be asked.

    def submit(self, request: RolloutRequest) -> tuple[RolloutStatus, bool]:
        """Begin a rollout, unless this very one is known; returns how it stands, and whether it is new.

        A rollback supersedes a release that is not promoted yet, and waits for the end of what is.

        Raises:
            RefusedError: another rollout goes on, or the id was used for another request.
        """
        known = self._find(request.id)
        if known is not None:
            if known.request != request:
                raise RefusedError(f"the id {request.id} was used for another request: choose another", request.id)
            return self.rollout(request.id), False
        target = self._targets.get(request.target)
        if target is not None and target.record.retiring:
            raise RefusedError(f"{request.target} is being taken out of service: try again in a few seconds")
        runners = self._runners.get(request.target, [])
        if runners:
            first = runners[0]
            promoted = first.status.outcome == "promoted"
            follows = (
                request.kind == "rollback"
                and len(runners) == 1
                and (promoted or first.rollout.request.kind == "release")
            )
            if not follows:
                raise RefusedError(
                    f"rollout {runners[-1].rollout.id} goes on on {request.target}: wait for it, or abort it",
                    runners[-1].rollout.id,
                )
            if not first.decided:
                first.stop(f"superseded by the rollback {request.id}")
            first.hurry()
        self._sequence += 1
        rollout = Rollout(
            request=request,
            status=RolloutStatus(id=request.id, kind=request.kind, target=request.target, state="pending"),
            sequence=self._sequence,
            asked=datetime.now(UTC),
        )
        self._records.save_rollout(rollout)
        new = target is None
        target = self._target(request.target)
        self._runners.setdefault(target.name, []).append(self._runner(rollout, target))
        log("asked", rollout=rollout.id, kind=request.kind, target=target.name)
        if new:
            self._work(target)
        self._wake[target.name].set()
        return self.rollout(request.id), True

    def rollout(self, rollout: str) -> RolloutStatus:
        """How a rollout stands. Raises UnknownError."""
        found = self._find(rollout)
        if found is None:
            raise UnknownError(f"there is no rollout {rollout}")
        if found.status.ended:
            return found.status
        return found.status.model_copy(update={"champion": self._targets[found.request.target].record.champion})

    def target(self, name: str) -> TargetStatus:
        """What a target serves. Raises UnknownError."""
        target = self._targets.get(name)
        if target is None:
            raise UnknownError(f"there is no target {name}")
        runners = self._runners.get(name, [])
        return TargetStatus(
            target=name,
            champion=target.record.champion,
            previous=target.record.previous,
            rollout=runners[0].rollout.id if runners else None,
            healthy=target.healthy,
        )

    def state(self) -> ControllerState:
        """All targets, and the rollouts that have not ended."""
        return ControllerState(
            targets=tuple(self.target(name) for name in sorted(self._targets)),
            unfinished=tuple(runner.rollout.request for runners in self._runners.values() for runner in runners),
        )

    def abort(self, rollout: str, reason: str) -> RolloutStatus:
        """Have a rollout go back. Raises UnknownError, or RefusedError where it is promoted already."""
        runner = self._running(rollout)
        if runner is None or runner.status.state == "promoted":
            status = self.rollout(rollout)
            if status.outcome == "promoted":
                raise RefusedError(f"rollout {rollout} is promoted already: ask for a rollback")
            return status
        if not runner.decided:
            runner.stop(f"aborted: {reason}")
        return self.rollout(rollout)

    def resume(self, rollout: str) -> RolloutStatus:
        """Let a held rollout go on. Raises UnknownError, or RefusedError where it is not held."""
        status = self.rollout(rollout)
        runner = self._running(rollout)
        if runner is None or status.state != "held":
            raise RefusedError(
                f"rollout {rollout} is not held (its state is {status.state}): there is nothing to resume"
            )
        runner.resume()
        return status

    async def retire(self, name: str) -> bool:
        """Take a target out of service and forget its history; returns whether there was one.

        Raises:
            RefusedError: the router does not follow now; it goes on, and can be asked again.
        """
        target = self._targets.get(name)
        if target is None:
            return False
        async with self._retiring:
            if not target.record.retiring:
                target.save(target.record.model_copy(update={"retiring": True}))
                await self._end_tasks(name)
                self._spawn(name, self._clear_away(target))
        (task,) = self._tasks[name]
        try:
            await asyncio.wait_for(asyncio.shield(task), RETIRE_SECONDS)
        except TimeoutError:
            raise RefusedError(f"{name} is still being taken out of service: see that router and Triton run") from None
        return True

    # What is done.

    def _target(self, name: str) -> Target:
        if name not in self._targets:
            self._targets[name] = Target(TargetRecord(target=name), self._peers, self._records)
        return self._targets[name]

    def _runner(self, rollout: Rollout, target: Target) -> Runner:
        return Runner(rollout, target, self._records, self._collect, self._declare)

    def _find(self, rollout: str) -> Rollout | None:
        runner = self._running(rollout)
        return runner.rollout if runner else self._rollouts.get(rollout)

    def _running(self, rollout: str) -> Runner | None:
        return next((one for many in self._runners.values() for one in many if one.rollout.id == rollout), None)

    def _work(self, target: Target) -> None:
        self._wake[target.name] = asyncio.Event()
        # Apart: to read a large engine, or to load one again, may take minutes; meanwhile the rest is looked after.
        kept = (self._keep(target, work) for work in (target.follow, target.tend, target.supply))
        self._spawn(target.name, *kept, self._lead(target))

    def _spawn(self, name: str, *work: Coroutine[Any, Any, None]) -> None:
        self._tasks[name] = [asyncio.create_task(coroutine) for coroutine in work]

    async def _end_tasks(self, name: str) -> None:
        tasks = self._tasks.pop(name, [])
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _keep(self, target: Target, work: Callable[[], Awaitable[None]]) -> None:
        while True:
            try:
                await work()
            except Exception as error:
                log("fault", target=target.name, error=f"{type(error).__name__}: {error}")
            await asyncio.sleep(self._peers.timing.tend)

    async def _lead(self, target: Target) -> None:
        """One rollout after the other."""
        wake = self._wake[target.name]
        runners = self._runners.setdefault(target.name, [])
        while True:
            if not runners:
                wake.clear()
                await wake.wait()
                continue
            runner = runners[0]
            try:
                await runner.run()
            except Exception as error:
                log("fault", rollout=runner.rollout.id, error=f"{type(error).__name__}: {error}")
                await asyncio.sleep(self._peers.timing.retry)
                continue
            self._rollouts[runner.rollout.id] = runner.rollout
            runners.pop(0)
            if runner.left is not None:
                self._tasks[target.name].append(asyncio.create_task(self._keep_left(runner)))

    async def _keep_left(self, runner: Runner) -> None:
        try:
            await runner.keep_left()
        except OSError as error:
            log("evidence_pending", rollout=runner.rollout.id, error=error)
        self._rollouts[runner.rollout.id] = runner.rollout

    async def _always(self, what: str, work: Callable[[], Awaitable[None]]) -> None:
        """Whatever targets there are: what a retired one could not unload has nobody else."""
        while True:
            try:
                await work()
            except Exception as error:
                log("fault", task=what, error=f"{type(error).__name__}: {error}")
            await asyncio.sleep(self._peers.timing.tend)

    async def _keep_house(self) -> None:
        self._forget_old()
        await self._collect()

    def _forget_old(self) -> None:
        """Ended rollouts whose evidence is in the store, after as long as `HISTORY` says."""
        oldest = datetime.now(UTC) - HISTORY
        for rollout in [one for one in self._rollouts.values() if one.forgettable(oldest)]:
            self._records.forget_rollout(rollout.id)
            del self._rollouts[rollout.id]

    async def _collect(self) -> None:
        """Unload and remove what no target needs any more."""
        await asyncio.gather(*map(self._collect_from, self._peers.tiers))

    async def _collect_from(self, servers: Servers) -> None:
        """A release that does not go keeps no other from going."""
        problems: list[str] = []
        try:
            idle = (await servers.loaded() | await servers.installed()) - self._needed(servers)
            idle -= await self._routed(servers) if idle else set()
        except (RouterError, AnemoneError, OSError) as error:
            problems.append(str(error))
        else:
            await asyncio.gather(*(self._take_away(servers, name, problems) for name in sorted(idle)))
        self._tell_once("collect_pending", servers, "; ".join(problems))

    async def _take_away(self, servers: Servers, name: str, problems: list[str]) -> None:
        async with servers.collecting[name]:
            if name in self._needed(servers):
                return
            with _noted(problems):
                if name in await servers.loaded():
                    log("unload", tier=servers.name, release=name)
                    await servers.unload(name)
                if name in await servers.installed():
                    await servers.remove(name)

    def _tell_once(self, event: str, servers: Servers, problem: str) -> None:
        if problem and problem != self._told.get((event, servers.name)):
            log(event, tier=servers.name, error=problem)
        self._told[event, servers.name] = problem

    def _needed(self, servers: Servers) -> set[str]:
        stable = servers is self._peers.stable
        return {name for target in self._targets.values() for name in (target.needed() if stable else target.needs)}

    async def _routed(self, servers: Servers) -> set[str]:
        """What the router sends clients to, for want of records, or because it has not followed yet: it stays."""
        peers, routed = self._peers, await self._peers.router.routed()
        arms = [arm for arm, tier in (("champion", peers.stable), ("canary", peers.canary)) if tier is servers]
        return set().union(*(routed[arm] for arm in arms))

    async def _declare(self) -> None:
        """Say to each tier what a server of it has to have before clients are sent there."""
        champions = {name for target in self._targets.values() if (name := target.champion_name)}
        canaries = {target.canary.name for target in self._targets.values() if target.canary}
        known = champions | canaries | {name for target in self._targets.values() for name in target.known()}
        both = self._peers.stable is self._peers.canary
        asked = [(self._peers.stable, champions | canaries if both else champions)]
        if not both:
            asked.append((self._peers.canary, canaries))
        await asyncio.gather(*(self._declare_to(servers, names, known) for servers, names in asked))

    async def _declare_to(self, servers: Servers, names: set[str], known: set[str]) -> None:
        """Where records are lost, what the router leads to says what a server has to have."""
        try:
            try:
                names = names | (await self._routed(servers) - known)
            except RouterError:
                if not names:
                    raise
            if len(names) > 1:
                # One that no server has would take every server from the clients of the others, and help nobody.
                names = names & await servers.loaded() or names
            await servers.serve(names)
        except (RouterError, AnemoneError, OSError) as error:
            self._tell_once("declare_pending", servers, str(error))
        else:
            self._tell_once("declare_pending", servers, "")

    async def _clear_away(self, target: Target) -> None:
        """The end of a target: no route, nothing loaded, no history."""
        target.needs.clear()
        await self._peers.until_done("the target is retired", lambda: target.set_route(target.alone()))
        await self._collect()
        for runner in self._runners.pop(target.name, []):
            self._records.forget_rollout(runner.rollout.id)
        for rollout in [one for one in self._rollouts.values() if one.request.target == target.name]:
            self._records.forget_rollout(rollout.id)
            del self._rollouts[rollout.id]
        self._records.forget_target(target.name)
        del self._targets[target.name]
        self._wake.pop(target.name, None)
        log("retired", target=target.name)


@contextmanager
def _noted(problems: list[str]) -> Iterator[None]:
    try:
        yield
    except (AnemoneError, OSError) as error:
        problems.append(str(error))
