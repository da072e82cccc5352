"""All targets and their rollouts: the requests that the controller takes, and the tasks that carry them out."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta

from include.release.rollouts import RETIRE_SECONDS, ControllerState, RolloutRequest, RolloutStatus, TargetStatus
from jobs.serving.canary.data_plane import DataPlane
from jobs.serving.canary.placement import Placement
from jobs.serving.canary.rollout.runner import Runner
from jobs.serving.canary.state.backlog import EvidenceBacklog
from jobs.serving.canary.state.records import Records, Rollout, TargetRecord
from jobs.serving.canary.target import Target
from jobs.serving.durably import unbroken
from jobs.serving.log import log

HISTORY = timedelta(days=90)
"""How long the status of an ended rollout is kept; its evidence in the store is left to retention."""


class RefusedError(Exception):
    """A request that conflicts with the present state; `rollout` is the rollout in the way, if any."""

    def __init__(self, message: str, rollout: str | None = None) -> None:
        super().__init__(message)
        self.rollout = rollout


class UnknownError(Exception):
    """A rollout or target that does not exist."""


class Controller:
    """The service. Call `start` first and `close` last; its work survives any other end of the process."""

    def __init__(self, records: Records, data_plane: DataPlane) -> None:
        self._records = records
        self._data_plane = data_plane
        self._targets: dict[str, Target] = {}
        self._placement = Placement(data_plane, self._targets)
        self._rollouts: dict[str, Rollout] = {}
        """Ended rollouts only; the others are with their runner."""
        self._runners: dict[str, list[Runner]] = {}
        self._wake: dict[str, asyncio.Event] = {}
        self._tasks: dict[str, list[asyncio.Task[None]]] = {}
        self._retirements: dict[str, asyncio.Task[None]] = {}
        self._housekeeping: list[asyncio.Task[None]] = []
        self._sequence = 0
        self._changing = asyncio.Lock()
        """Held by a request that begins a rollout or a retirement, until that is durable."""
        self._evidence = EvidenceBacklog(records, data_plane.store, self._rollouts)

    async def start(self) -> None:
        """Go on with what an earlier controller left: promoted rollouts are completed, others begin again.

        Raises:
            DataError: a target's record is damaged.
        """
        rollouts = await self._records.disk.run(self._records.rollouts)
        for record in await self._records.disk.run(self._records.targets):
            self._targets[record.target] = Target(record, self._data_plane, self._records)
        for rollout in rollouts:
            self._sequence = max(self._sequence, rollout.sequence)
            if rollout.status.ended:
                self._rollouts[rollout.id] = rollout
                if not rollout.retired:
                    self._target(rollout.request.target)
                continue
            target = self._target(rollout.request.target)
            if rollout.status.state == "promoted":
                await target.promote(rollout)
                target.route = target.champion_only()
            self._runners.setdefault(target.name, []).append(self._runner(rollout, target))
        for runners in self._runners.values():
            for runner in runners[:-1]:
                runner.expedite()
        for target in list(self._targets.values()):
            if target.record.retiring:
                self._start_retirement(target)
            else:
                self._start_tasks(target)
        # In a task of its own each: unloading a release takes as long as its last request, and a store may be away.
        for name, work in (
            ("collect", self._collect_garbage),
            ("set_readiness", self._placement.set_readiness),
            ("store_evidence", self._evidence.store),
        ):
            self._housekeeping.append(asyncio.create_task(self._repeat(work, task=name)))
        log("started", targets=len(self._targets), unfinished=sum(map(len, self._runners.values())))

    async def close(self) -> None:
        """End all tasks; the next controller of this folder goes on with them."""
        tasks = [*self._housekeeping, *self._retirements.values()]
        tasks += [task for tasks in self._tasks.values() for task in tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._records.close()

    # Requests.

    async def submit(self, request: RolloutRequest) -> tuple[RolloutStatus, bool]:
        """Begin a rollout, unless the same request is known; return its status, and whether it is new.

        A rollback supersedes a release that is not promoted yet, and waits for the end of one that is.

        Raises:
            RefusedError: another rollout goes on, or the id was used for another request.
        """
        async with self._changing:
            known = self._find(request.id)
            if known is not None:
                if known.retired:
                    raise RefusedError(
                        f"{request.target} was taken out of service after a rollout {request.id}, whose evidence is "
                        "still to be stored: try again once the store is back"
                    )
                if known.request != request:
                    raise RefusedError(f"the id {request.id} was used for another request: choose another", request.id)
                return self._status(known), False
            return await unbroken(self._begin(request)), True

    async def _begin(self, request: RolloutRequest) -> RolloutStatus:
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
            await first.stop(f"superseded by the rollback {request.id}")
            first.expedite()
        self._sequence += 1
        rollout = Rollout(
            request=request,
            status=RolloutStatus(id=request.id, kind=request.kind, target=request.target, state="pending"),
            sequence=self._sequence,
            asked=datetime.now(UTC),
        )
        await self._records.save_rollout(rollout)
        new = target is None
        target = self._target(request.target)
        self._runners.setdefault(target.name, []).append(self._runner(rollout, target))
        log("asked", rollout=rollout.id, kind=request.kind, target=target.name)
        if new:
            self._start_tasks(target)
        self._wake[target.name].set()
        return self._status(rollout)

    def rollout(self, rollout: str) -> RolloutStatus:
        """Return the status of a rollout. Raises UnknownError."""
        found = self._find(rollout)
        if found is None:
            raise UnknownError(f"there is no rollout {rollout}")
        return self._status(found)

    def _status(self, rollout: Rollout) -> RolloutStatus:
        if rollout.status.ended:
            return rollout.status
        return rollout.status.model_copy(update={"champion": self._targets[rollout.request.target].record.champion})

    def target(self, name: str) -> TargetStatus:
        """Return the status of a target. Raises UnknownError."""
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
        """Return the status of all targets, and the requests of all rollouts that have not ended."""
        return ControllerState(
            targets=tuple(self.target(name) for name in sorted(self._targets)),
            unfinished=tuple(runner.rollout.request for runners in self._runners.values() for runner in runners),
        )

    async def abort(self, rollout: str, reason: str) -> RolloutStatus:
        """Roll a rollout back. Raises UnknownError, or RefusedError where it is promoted already."""
        runner = self._running(rollout)
        if runner is not None:
            await runner.stop(f"aborted: {reason}")
        status = self.rollout(rollout)
        if status.outcome == "promoted":
            raise RefusedError(f"rollout {rollout} is promoted already: ask for a rollback")
        return status

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
        """Take a target out of service and forget its history; return whether it existed.

        Raises:
            RefusedError: the router or the disk does not take it in time; the retirement goes on, and can be asked for
                again.
        """
        async with self._changing:
            target = self._targets.get(name)
            if target is None:
                return False
            if not target.record.retiring:
                await target.save(lambda record: record.model_copy(update={"retiring": True}))
            # A caller that was cancelled may have left it at the record.
            if name not in self._retirements:
                self._start_retirement(target)
            task = self._retirements[name]
        try:
            await asyncio.wait_for(asyncio.shield(task), RETIRE_SECONDS)
        except TimeoutError:
            raise RefusedError(
                f"{name} is still being taken out of service: see that router and Triton run, and what the "
                "controller's log says"
            ) from None
        return True

    # Tasks.

    def _target(self, name: str) -> Target:
        if name not in self._targets:
            self._targets[name] = Target(TargetRecord(target=name), self._data_plane, self._records)
        return self._targets[name]

    def _runner(self, rollout: Rollout, target: Target) -> Runner:
        return Runner(rollout, target, self._records, self._placement)

    def _find(self, rollout: str) -> Rollout | None:
        runner = self._running(rollout)
        return runner.rollout if runner else self._rollouts.get(rollout)

    def _running(self, rollout: str) -> Runner | None:
        return next((one for many in self._runners.values() for one in many if one.rollout.id == rollout), None)

    def _start_tasks(self, target: Target) -> None:
        self._wake[target.name] = asyncio.Event()
        # In a task of its own each: reading a large engine, or loading one again, may take minutes.
        loops = (
            self._repeat(work, target=target.name) for work in (target.sync_route, target.resync, target.deploy_missing)
        )
        self._tasks[target.name] = [asyncio.create_task(work) for work in (*loops, self._run_rollouts(target))]

    def _start_retirement(self, target: Target) -> None:
        self._retirements[target.name] = asyncio.create_task(self._retire(target))

    async def _end_tasks(self, name: str) -> None:
        tasks = self._tasks.pop(name, [])
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _repeat(self, work: Callable[[], Awaitable[None]], **fields: str) -> None:
        """Repeat work for as long as the controller runs.

        Args:
            fields: of the log line about an error.
        """
        while True:
            try:
                await work()
            except Exception as error:
                log("fault", **fields, error=f"{type(error).__name__}: {error}")
            await asyncio.sleep(self._data_plane.timing.resync)

    async def _run_rollouts(self, target: Target) -> None:
        """Run one rollout after the other."""
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
                await asyncio.sleep(self._data_plane.timing.retry)
                continue
            self._rollouts[runner.rollout.id] = runner.rollout
            runners.pop(0)

    async def _collect_garbage(self) -> None:
        """Forget old rollouts, and unload what no target needs, be it of a target that was retired."""
        await self._evidence.forget_old(datetime.now(UTC) - HISTORY)
        await self._placement.collect()

    async def _retire(self, target: Target) -> None:
        """Take a target out of service, in as many tries as that needs: it serves nothing any more, and cannot go back.

        Its tasks may finish what they write first. Only this one waits for that: requests for other targets do not.
        """
        await self._end_tasks(target.name)
        while True:
            try:
                await self._finish_retirement(target)
                return
            except Exception as error:
                log("fault", target=target.name, error=f"{type(error).__name__}: {error}")
                await asyncio.sleep(self._data_plane.timing.retry)

    async def _finish_retirement(self, target: Target) -> None:
        """Remove a target's route, its loaded releases and its history, but for evidence that is still to be stored.

        Idempotent.
        """
        target.needs.clear()
        await self._data_plane.retry_forever("the target is retired", lambda: target.set_route(target.champion_only()))
        await self._placement.collect()
        runners = self._runners.get(target.name, [])
        while runners:
            runner = runners[0]
            if runner.decided:
                await runner.finish_without_evidence("the target was taken out of service")
                self._rollouts[runner.rollout.id] = runner.rollout
            else:
                await self._records.forget_rollout(runner.rollout.id)
            runners.pop(0)
        for rollout in [one for one in self._rollouts.values() if one.request.target == target.name]:
            await self._evidence.retire(rollout.id)
        await self._records.forget_target(target.name)
        del self._targets[target.name]
        self._runners.pop(target.name, None)
        self._wake.pop(target.name, None)
        self._retirements.pop(target.name, None)
        log("retired", target=target.name)
