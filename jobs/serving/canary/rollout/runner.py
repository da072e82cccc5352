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
from jobs.serving.canary.rollout.journal import Journal
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
    """Runs one rollout from its precheck to its end.

    Attributes:
        evidence_task: stores the evidence after the end of a rollout whose successor did not wait for it; else None.
    """

    def __init__(self, rollout: Rollout, target: Target, records: Records, placement: Placement) -> None:
        self.target = target
        self.evidence_task: asyncio.Task[Rollout] | None = None
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
        return self.status.state in ("promoted", "rolling_back", "finished")

    def stop(self, reason: str) -> None:
        """Roll an undecided rollout back. A second reason is ignored."""
        if self.rollout.stop is not None:
            return
        self._journal.change(stop=reason)
        self._records.save_rollout(self.rollout)
        self._halt.set()

    def expedite(self) -> None:
        """End as soon as possible, because a rollback waits: leave to afterwards what can be done then."""
        self._expedited.set()

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
                self._decide(await self._verdict())
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
        self._journal.save("precheck", f"{reason}; {what}", restarts=restarts, step=None, weight=0.0, reasons=(reason,))

    def _interrupt(self, reason: str) -> None:
        self._interruption = reason
        self._halt.set()

    async def _attempt(self) -> Verdict:
        self._journal.save("precheck", "precheck: what is live, the engine, Triton and the router", reasons=())
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
                self._journal.save("smoke", f"{live.name} is live already")
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
            self._journal.save("smoke", f"{live.name} is live already")
            return Verdict("promoted")
        if problem := await self._actions.smoke_test(stable, live.name, golden):
            await self._actions.require_loaded(stable, live)
            return Verdict("rolled_back", (problem,))
        return await self._actions.take_over(live)

    # The commit point, and after it.

    def _decide(self, verdict: Verdict) -> None:
        """Make the verdict durable: the commit point, which alone changes what the target is to serve."""
        promoted = verdict.outcome == "promoted"
        if promoted:
            live = self.rollout.release
            assert live is not None
            self._journal.change(release=live.model_copy(update={"since": datetime.now(UTC)}))
        note = f"promoted: {self.status.name}" if promoted else f"{_in_words(verdict.outcome)}: {verdict.reasons[0]}"
        self._journal.save(
            "promoted" if promoted else "rolling_back",
            note,
            outcome=verdict.outcome,
            reasons=verdict.reasons,
            step=None,
        )

    async def _complete_promotion(self) -> None:
        former = self.target.record.champion
        self.target.promote(self.rollout)
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
        self._journal.save("promoted", f"{champion.name} takes all of the traffic")

    async def _complete_rollback(self) -> None:
        await self._route_champion()
        self._journal.set_status(weight=0.0)
        name = self.status.name
        champion = self.target.record.champion
        if name is not None and (champion is None or champion.name != name):
            await self._drain(name)
            self._journal.save("rolling_back", f"{name} has no traffic any more")
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
            self._journal.save(self.status.state, message)

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
        """End the rollout, with its evidence; where a rollback waits, `evidence_task` stores that meanwhile."""
        storing = await self._unless_expedited(self._store_evidence())
        if storing.done():
            self._journal.commit(storing.result())
            return
        words = _in_words(self.status.outcome or "rolled_back")
        message = f"finished: {words}; a rollback waits, so the evidence is stored meanwhile"
        self._journal.save("finished", message, champion=self.target.record.champion, weight=0.0, step=None)
        self.evidence_task = storing

    async def finish_evidence(self) -> None:
        """Wait for `evidence_task`, and write the record that names the evidence."""
        if self.evidence_task is not None:
            self._journal.commit(await self.evidence_task)

    async def _store_evidence(self) -> Rollout:
        """Commit the evidence; return the ended record. After some tries the rollout ends without evidence."""
        uri = evidence.evidence_uri(self._data_plane.store, self.rollout.id)
        champion = self.target.record.champion
        words = _in_words(self.status.outcome or "rolled_back")
        finished = self._journal.with_note(
            "finished", f"finished: {words}", champion=champion, evidence=uri, weight=0.0, step=None
        )
        analysis_log = self._records.analysis_log(self.rollout.id)
        for tries_left in reversed(range(_EVIDENCE_TRIES)):
            try:
                await asyncio.to_thread(evidence.commit, self._data_plane.store, finished, analysis_log)
                break
            except (AnemoneError, OSError) as error:
                log("evidence_pending", rollout=self.rollout.id, error=error)
                if tries_left:
                    await asyncio.sleep(self._data_plane.timing.retry)
                else:
                    reason = f"finished: {words}; the evidence could not be stored ({error}), it is in {analysis_log}"
                    finished = self._journal.with_note("finished", reason, champion=champion, weight=0.0, step=None)
        return finished


def _in_words(outcome: Outcome) -> str:
    return outcome.replace("_", " ")


async def _cancel(task: asyncio.Task[Any]) -> None:
    """Cancel a task and wait for its end, without raising its error."""
    task.cancel()
    await asyncio.wait((task,))
