"""Run one rollout from the state in its record to its end.

    pending → precheck → load → ready → smoke → step … → promoted → finished
                                                       ↘ rolling_back → finished

The record's state `promoted` is the commit point. A failure before it ends with the champion, or the rollout begins
again at its first step; after it the promotion is completed in any case. Every action is idempotent.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from typing import Any, TypeVar

from include.errors import AnemoneError
from include.release.rollouts import LiveRelease, Outcome, RolloutStatus
from jobs.serving.canary.analysis.observation import in_flight
from jobs.serving.canary.placement import Placement
from jobs.serving.canary.rollout.actions import Actions
from jobs.serving.canary.rollout.journal import Journal, noting
from jobs.serving.canary.rollout.outcome import UnreachableError, Verdict
from jobs.serving.canary.rollout.resolution import resolve
from jobs.serving.canary.rollout.steps import Resumes, Steps
from jobs.serving.canary.state import evidence
from jobs.serving.canary.state.records import Records, Rollout
from jobs.serving.canary.target import Target
from jobs.serving.canary.traffic.interface import ConflictError, RouterError
from jobs.serving.canary.traffic.lease import Lease
from jobs.serving.log import log

T = TypeVar("T")

MAX_RESTARTS = 2
_EVIDENCE_TRIES = 3


class Runner:
    """Runs one rollout from its precheck to its end."""

    def __init__(self, rollout: Rollout, target: Target, records: Records, placement: Placement) -> None:
        self.target = target
        self._journal = Journal(rollout, records)
        self._records = records
        self._placement = placement
        self._data_plane = target.data_plane
        self._halt = asyncio.Event()
        self._expedited = asyncio.Event()
        self._collecting: asyncio.Task[None] | None = None
        """A reference, without which the task might be garbage-collected while it runs."""
        self._interruption: str | None = None
        self._fault: str | None = None
        self._resumes = Resumes()
        self._actions = Actions(self._journal, target)
        self._steps = Steps(self._journal, target, records, self._actions, self._resumes)
        if rollout.status.name is not None:
            target.needs.add(rollout.status.name)

    @property
    def rollout(self) -> Rollout:
        return self._journal.rollout

    @property
    def status(self) -> RolloutStatus:
        return self.rollout.status

    @property
    def decided(self) -> bool:
        """Whether it is promoted or rolling back, so that it can no longer be stopped."""
        return _is_decided(self.rollout)

    async def stop(self, reason: str) -> None:
        """Roll a rollout back, unless it is decided by the time that this is durable. A second reason is ignored."""

        def change(rollout: Rollout) -> Rollout | None:
            if rollout.stop is not None or _is_decided(rollout):
                return None
            return rollout.model_copy(update={"stop": reason})

        await self._journal.commit(change)
        self._halt.set()

    def expedite(self) -> None:
        """End as soon as possible, because a rollback waits: leave to afterwards what can be done then."""
        self._expedited.set()

    async def finish_without_evidence(self, reason: str) -> None:
        """End a decided rollout at once, whatever of it is left to do; its evidence is stored later.

        Args:
            reason: why it is not stored now.

        Raises:
            OSError: the disk does not take it; the record is as it was.
        """
        if not self.status.ended:
            uri, words, ended = self._end()
            kept = self._records.analysis_log(self.rollout.id).parent
            message = f"{words}; its evidence is kept in {kept} and stored at {uri} as soon as possible ({reason})"
            await self._journal.save("finished", message, evidence_pending=uri, **ended)

    def resume(self) -> None:
        """Let a held canary go on for another `max_seconds`."""
        self._resumes.resume()

    async def run(self) -> None:
        """Take the rollout to its end.

        Raises:
            Exception: a bug, or a disk that takes no record; call it again then.
        """
        if not self.decided:
            try:
                if self._fault is not None:
                    await self._begin_again(self._fault)
                elif self.status.state not in ("pending", "precheck"):
                    await self._begin_again("the controller was interrupted")
                self._fault = None
                await self._decide(await self._verdict())
            except Exception as error:
                self._fault = f"a fault of the controller ({type(error).__name__}: {error})"
                raise
        if self.status.state == "promoted":
            await self._complete_promotion()
        elif self.status.state == "rolling_back":
            await self._complete_rollback()
        self.target.needs.clear()
        await self._finish()

    # Before the commit point.

    async def _verdict(self) -> Verdict:
        while self.status.restarts <= MAX_RESTARTS:
            self._halt.clear()
            self._interruption = None
            if self.rollout.stop is None:
                attempt = asyncio.create_task(self._attempt())
                halt = asyncio.create_task(self._halt.wait())
                try:
                    await asyncio.wait((attempt, halt), return_when=asyncio.FIRST_COMPLETED)
                finally:
                    await _cancel(halt)
                    await _cancel(attempt)
                    self.target.interrupt = None
                    self.target.canary = None
            if self.rollout.stop is not None:
                return Verdict("rolled_back", (self.rollout.stop,))
            if self._interruption is None:
                try:
                    verdict = attempt.result()
                    # A rollout that was interrupted may have been loaded before, and then there is something to undo.
                    undo = verdict.outcome == "refused" and self.status.name is not None
                    return Verdict("rolled_back", verdict.reasons) if undo else verdict
                except UnreachableError as error:
                    self._interruption = str(error)
            await self._begin_again(self._interruption)
        return Verdict(
            "rolled_back", (f"it had to begin again {self.status.restarts} times: {self.status.reasons[0]}",)
        )

    async def _begin_again(self, reason: str) -> None:
        """Take the canary's traffic away at once, and count one more restart."""
        try:
            await self.target.set_route(self.target.champion_only())
        except RouterError as error:
            log("route_pending", target=self.target.name, error=error)
        restarts = self.status.restarts + 1
        what = "it begins again at its first step" if restarts <= MAX_RESTARTS else "it does not begin again"
        await self._journal.save(
            "precheck", f"{reason}; {what}", restarts=restarts, step=None, weight=0.0, reasons=(reason,)
        )

    def _interrupt(self, reason: str) -> None:
        self._interruption = reason
        self._halt.set()

    async def _attempt(self) -> Verdict:
        await self._journal.save("precheck", "precheck: what is live, the engine, Triton and the router", reasons=())
        release = resolve(self.rollout, self.target.record)
        if isinstance(release, str):
            return Verdict("refused", (release,))
        if refusal := await self._actions.precheck(release):
            return Verdict("refused", (refusal,))
        if self.rollout.request.kind == "rollback":
            return await self._roll_back(release)
        async with AsyncExitStack() as stack:
            champion = self.target.record.champion
            if champion is not None:
                data_plane = self._data_plane
                lease = Lease(
                    data_plane.router, self.target.name, self.rollout.id, data_plane.boot, data_plane.timing.lease
                )
                try:
                    await stack.enter_async_context(lease)
                except ConflictError as error:
                    return Verdict("refused", (f"the lease on {self.target.name} cannot be taken: {error}",))
                except RouterError as error:
                    raise UnreachableError(str(error)) from None
                self.target.holder = lease.holder
            canary = self._data_plane.canary
            try:
                live, golden = await self._actions.load(canary, release)
            except (AnemoneError, OSError) as error:
                await self._actions.require_loaded(canary, None)
                await self._actions.require_loaded(self._data_plane.stable, champion)
                return Verdict("rolled_back", (f"the release cannot be loaded: {error}",))
            if champion is not None and live.name == champion.name:
                await self._journal.save("smoke", f"{live.name} is live already")
                return Verdict("promoted")
            if problem := await self._actions.smoke_test(canary, live.name, golden):
                await self._actions.require_loaded(canary, live)
                return Verdict("rolled_back", (problem,))
            if champion is None:
                return await self._actions.take_over(live)
            self.target.interrupt = self._interrupt
            self.target.canary = live
            verdict = await self._steps.run(live, champion, golden)
            return await self._actions.take_over(live) if verdict.outcome == "promoted" else verdict

    async def _roll_back(self, release: LiveRelease) -> Verdict:
        """Bring back a former release on the stable servers alone: the canary's may be what is broken.

        It needs no lease, since no canary gets traffic.
        """
        stable = self._data_plane.stable
        try:
            live, golden = await self._actions.load(stable, release)
        except (AnemoneError, OSError) as error:
            await self._actions.require_loaded(stable, None)
            return Verdict("rolled_back", (f"the release cannot be loaded: {error}",))
        champion = self.target.record.champion
        if champion is not None and live.name == champion.name:
            await self._journal.save("smoke", f"{live.name} is live already")
            return Verdict("promoted")
        if problem := await self._actions.smoke_test(stable, live.name, golden):
            await self._actions.require_loaded(stable, live)
            return Verdict("rolled_back", (problem,))
        return await self._actions.take_over(live)

    # The commit point, and after it.

    async def _decide(self, verdict: Verdict) -> None:
        """Make the verdict durable: the commit point, which alone changes what the target is to serve."""
        now = datetime.now(UTC)

        def change(rollout: Rollout) -> Rollout:
            # Whoever stopped it since was answered that it goes back.
            outcome, reasons = verdict if rollout.stop is None else Verdict("rolled_back", (rollout.stop,))
            decided = {"outcome": outcome, "reasons": reasons, "step": None}
            if outcome != "promoted":
                return noting("rolling_back", f"{_in_words(outcome)}: {reasons[0]}", time=now, **decided)(rollout)
            assert rollout.release is not None
            promoted = rollout.model_copy(update={"release": rollout.release.model_copy(update={"since": now})})
            return noting("promoted", f"promoted: {rollout.status.name}", time=now, **decided)(promoted)

        await self._journal.commit(change)

    async def _complete_promotion(self) -> None:
        former = await self.target.promote(self.rollout)
        champion = self.target.record.champion
        assert champion is not None
        if former is not None:
            self.target.needs.add(former.name)
        # A server without the release gets no more requests; and Triton may have been started again since.
        await self._placement.set_readiness()
        await self._data_plane.retry_forever("the new champion is loaded", lambda: self.target.ensure_loaded(champion))
        await self._route_champion()
        self._journal.set_status(weight=0.0)
        if former is not None and former.name != champion.name:
            await self._drain(former.name)
        await self._journal.save("promoted", f"{champion.name} takes all of the traffic")

    async def _complete_rollback(self) -> None:
        await self._route_champion()
        self._journal.set_status(weight=0.0)
        name = self.status.name
        champion = self.target.record.champion
        if name is not None and (champion is None or champion.name != name):
            await self._drain(name)
            await self._journal.save("rolling_back", f"{name} has no traffic any more")
            self.target.needs.discard(name)
            self._collecting = await self._unless_expedited(self._placement.collect())

    async def _route_champion(self) -> None:
        await self._data_plane.retry_forever(
            "the router follows", lambda: self.target.set_route(self.target.champion_only())
        )

    async def _drain(self, name: str) -> None:
        """Wait for the requests that a release still answers, until `Timing.drain` is over or a rollback waits."""
        loop = asyncio.get_running_loop()
        until = loop.time() + self._data_plane.timing.drain
        remaining = 0
        while loop.time() < until and self.target.route.champion is not None:
            try:
                remaining = in_flight(await self._data_plane.router.counts(self.target.name), name)
                if not remaining:
                    return
            except RouterError as error:
                log("counts_missing", rollout=self.rollout.id, error=error)
            if self._expedited.is_set():
                break
            await asyncio.sleep(min(self._data_plane.timing.retry, 0.2))
        if remaining:
            when = "at a rollback" if self._expedited.is_set() else f"after {self._data_plane.timing.drain:.0f} s"
            message = f"{remaining} requests on {name} were still in flight {when}"
            await self._journal.save(self.status.state, message)

    async def _unless_expedited(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Wait for work until it is done or a rollback waits; return its task, which may still go on."""
        task, expedited = asyncio.create_task(work), asyncio.create_task(self._expedited.wait())
        try:
            await asyncio.wait((task, expedited), return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            await _cancel(task)
            raise
        finally:
            await _cancel(expedited)
        if task.done():
            task.result()
        return task

    async def _finish(self) -> None:
        """End the rollout with its evidence; where a rollback waits, or the store is away, that is stored later."""
        uri, words, ended = self._end()
        with_evidence = noting("finished", words, evidence=uri, **ended)
        storing = await self._unless_expedited(self._store_evidence(with_evidence(self.rollout)))
        problem = storing.result() if storing.done() else "a rollback waits"
        if problem is None:
            await self._journal.commit(with_evidence)
            return
        await _cancel(storing)
        await self.finish_without_evidence(problem)

    def _end(self) -> tuple[str, str, dict[str, Any]]:
        """Return where the evidence will be, the words of the last note, and the figures of a rollout that ends."""
        uri = evidence.evidence_uri(self._data_plane.store, self.rollout.id)
        words = f"finished: {_in_words(self.status.outcome or 'rolled_back')}"
        return uri, words, {"champion": self.target.record.champion, "weight": 0.0, "step": None}

    async def _store_evidence(self, ended: Rollout) -> str | None:
        """Commit the evidence; return None, or why the store did not take it in some tries."""
        analysis_log = self._records.analysis_log(ended.id)
        for tries_left in reversed(range(_EVIDENCE_TRIES)):
            try:
                await asyncio.to_thread(evidence.commit, self._data_plane.store, ended, analysis_log)
                break
            except (AnemoneError, OSError) as error:
                log("evidence_pending", rollout=ended.id, error=error)
                if not tries_left:
                    return str(error)
                await asyncio.sleep(self._data_plane.timing.retry)
        return None


def _is_decided(rollout: Rollout) -> bool:
    return rollout.status.state in ("promoted", "rolling_back", "finished")


def _in_words(outcome: Outcome) -> str:
    return outcome.replace("_", " ")


async def _cancel(task: asyncio.Task[Any]) -> None:
    """Cancel a task and wait for its end, without raising its error."""
    task.cancel()
    await asyncio.wait((task,))
