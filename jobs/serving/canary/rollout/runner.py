"""One rollout, led from wherever its record stands to its end.

    pending → precheck → load → ready → smoke → step … → promoted → finished
                                                       ↘ rolling_back → finished

The record's state `promoted` is the commit point. Whatever happens before it goes back to the champion, or begins
again at the first step; whatever happens after it goes forward. Every action can be done twice.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from typing import Any, TypeVar

from include.errors import AnemoneError
from include.release.rollouts import LiveRelease, Outcome, RolloutStatus
from jobs.serving.canary.analysis.observation import in_flight
from jobs.serving.canary.data_plane import Peers
from jobs.serving.canary.rollout.actions import Deeds
from jobs.serving.canary.rollout.journal import Journal
from jobs.serving.canary.rollout.resolution import resolve
from jobs.serving.canary.rollout.steps import Resumes, Steps
from jobs.serving.canary.rollout.verdict import UnansweredError, Verdict
from jobs.serving.canary.state import evidence
from jobs.serving.canary.state.records import Records, Rollout
from jobs.serving.canary.target import Target
from jobs.serving.canary.traffic.interface import ConflictError, RouterError
from jobs.serving.canary.traffic.lease import Lease
from jobs.serving.router.log import log

T = TypeVar("T")

MAX_RESTARTS = 2
_EVIDENCE_TRIES = 3


class Runner:
    """Leads one rollout.

    Attributes:
        left: what goes on after its end, because a rollback waited.
    """

    def __init__(
        self,
        rollout: Rollout,
        target: Target,
        records: Records,
        collect: Callable[[], Awaitable[None]],
        declare: Callable[[], Awaitable[None]],
    ) -> None:
        """
        Args:
            collect: unloads and removes what nobody needs.
            declare: says to the servers what they have to have before clients are sent there.
        """
        self.target = target
        self.left: asyncio.Task[Rollout] | None = None
        self._journal = Journal(rollout, records)
        self._records = records
        self._collect = collect
        self._declare = declare
        self._peers: Peers = target.peers
        self._halt = asyncio.Event()
        self._hurried = asyncio.Event()
        self._collecting: asyncio.Task[None] | None = None
        """Held, or the task might be collected itself while it runs."""
        self._interruption: str | None = None
        self._fault: str | None = None
        self._resumes = Resumes()
        self._deeds = Deeds(self._journal, target)
        self._steps = Steps(self._journal, target, records, self._deeds, self._resumes)
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
        """Whether it is promoted or going back already, so that it can no longer be stopped."""
        return self.status.state in ("promoted", "rolling_back", "finished")

    def stop(self, reason: str) -> None:
        """Have it go back; it has to be undecided. The first reason stays."""
        if self.rollout.stop is not None:
            return
        self._journal.change(stop=reason)
        self._records.save_rollout(self.rollout)
        self._halt.set()

    def hurry(self) -> None:
        """A rollback waits for its end: nothing that can be done afterwards keeps it waiting."""
        self._hurried.set()

    def resume(self) -> None:
        """Let a held canary be watched for another `max_seconds`."""
        self._resumes.resume()

    async def run(self) -> None:
        """Lead it to its end. Raises only what is a bug, or a disk that takes no record; then call it again."""
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
            await self._forward()
        elif self.status.state == "rolling_back":
            await self._back()
        self.target.needs.clear()
        await self._finish()

    # Before the commit point.

    async def _verdict(self) -> Verdict:
        while self.status.restarts <= MAX_RESTARTS:
            self._halt.clear()
            self._interruption = None
            if self.rollout.stop is None:
                lead = asyncio.create_task(self._lead())
                halt = asyncio.create_task(self._halt.wait())
                try:
                    await asyncio.wait((lead, halt), return_when=asyncio.FIRST_COMPLETED)
                finally:
                    await _end(halt)
                    await _end(lead)
                    self.target.interrupt = None
                    self.target.canary = None
            if self.rollout.stop is not None:
                return Verdict("rolled_back", (self.rollout.stop,))
            if self._interruption is None:
                try:
                    verdict = lead.result()
                    # Before an interruption it may have been loaded, and then there is something to undo.
                    known = verdict.outcome == "refused" and self.status.name is not None
                    return Verdict("rolled_back", verdict.reasons) if known else verdict
                except UnansweredError as error:
                    self._interruption = str(error)
            await self._begin_again(self._interruption)
        return Verdict(
            "rolled_back", (f"it had to begin again {self.status.restarts} times: {self.status.reasons[0]}",)
        )

    async def _begin_again(self, reason: str) -> None:
        """The canary loses its traffic at once; then the rollout begins again, which is counted."""
        try:
            await self.target.set_route(self.target.alone())
        except RouterError as error:
            log("route_pending", target=self.target.name, error=error)
        restarts = self.status.restarts + 1
        what = "it begins again at its first step" if restarts <= MAX_RESTARTS else "it does not begin again"
        self._journal.save("precheck", f"{reason}; {what}", restarts=restarts, step=None, weight=0.0, reasons=(reason,))

    def _interrupt(self, reason: str) -> None:
        self._interruption = reason
        self._halt.set()

    async def _lead(self) -> Verdict:
        self._journal.save("precheck", "precheck: what is live, the engine, Triton and the router", reasons=())
        release = resolve(self.rollout, self.target.record)
        if isinstance(release, str):
            return Verdict("refused", (release,))
        if refusal := await self._deeds.unready(release):
            return Verdict("refused", (refusal,))
        if self.rollout.request.kind == "rollback":
            return await self._roll_back(release)
        async with AsyncExitStack() as stack:
            champion = self.target.record.champion
            if champion is not None:
                peers = self._peers
                lease = Lease(peers.router, self.target.name, self.rollout.id, peers.boot, peers.timing.lease)
                try:
                    await stack.enter_async_context(lease)
                except ConflictError as error:
                    return Verdict("refused", (f"the lease on {self.target.name} cannot be had: {error}",))
                except RouterError as error:
                    raise UnansweredError(str(error)) from None
                self.target.holder = lease.holder
            canary = self._peers.canary
            try:
                live, golden = await self._deeds.load(canary, release)
            except (AnemoneError, OSError) as error:
                await self._deeds.require(canary, None)
                await self._deeds.require(self._peers.stable, champion)
                return Verdict("rolled_back", (f"the release cannot be loaded: {error}",))
            if champion is not None and live.name == champion.name:
                self._journal.save("smoke", f"{live.name} is live already")
                return Verdict("promoted")
            if problem := await self._deeds.prove(canary, live.name, golden):
                await self._deeds.require(canary, live)
                return Verdict("rolled_back", (problem,))
            if champion is None:
                return await self._deeds.take_over(live)
            self.target.interrupt = self._interrupt
            self.target.canary = live
            verdict = await self._steps.lead(live, champion, golden)
            return await self._deeds.take_over(live) if verdict.outcome == "promoted" else verdict

    async def _roll_back(self, release: LiveRelease) -> Verdict:
        """By the stable servers alone: the canary's may be what is broken. No canary gets traffic, so no lease."""
        stable = self._peers.stable
        try:
            live, golden = await self._deeds.load(stable, release)
        except (AnemoneError, OSError) as error:
            await self._deeds.require(stable, None)
            return Verdict("rolled_back", (f"the release cannot be loaded: {error}",))
        champion = self.target.record.champion
        if champion is not None and live.name == champion.name:
            self._journal.save("smoke", f"{live.name} is live already")
            return Verdict("promoted")
        if problem := await self._deeds.prove(stable, live.name, golden):
            await self._deeds.require(stable, live)
            return Verdict("rolled_back", (problem,))
        return await self._deeds.take_over(live)

    # The commit point, and after it.

    def _decide(self, verdict: Verdict) -> None:
        """Make the verdict durable. No other moment changes what the target is to serve."""
        promoted = verdict.outcome == "promoted"
        if promoted:
            live = self.rollout.release
            assert live is not None
            self._journal.change(release=live.model_copy(update={"since": datetime.now(UTC)}))
        note = f"promoted: {self.status.name}" if promoted else f"{_words(verdict.outcome)}: {verdict.reasons[0]}"
        self._journal.save(
            "promoted" if promoted else "rolling_back",
            note,
            outcome=verdict.outcome,
            reasons=verdict.reasons,
            step=None,
        )

    async def _forward(self) -> None:
        former = self.target.record.champion
        self.target.promote(self.rollout)
        champion = self.target.record.champion
        assert champion is not None
        if former is not None:
            self.target.needs.add(former.name)
        # A server without it is to get no more requests; and Triton may have been started again since.
        await self._declare()
        await self._peers.until_done("the new champion is loaded", lambda: self.target.ensure_loaded(champion))
        await self._route_champion()
        self._journal.set_status(weight=0.0)
        if former is not None and former.name != champion.name:
            await self._drain(former.name)
        self._journal.save("promoted", f"{champion.name} takes all of the traffic")

    async def _back(self) -> None:
        await self._route_champion()
        self._journal.set_status(weight=0.0)
        name = self.status.name
        champion = self.target.record.champion
        if name is not None and (champion is None or champion.name != name):
            await self._drain(name)
            self._journal.save("rolling_back", f"{name} has no traffic any more")
            self.target.needs.discard(name)
            self._collecting = await self._unless_hurried(self._collect())

    async def _route_champion(self) -> None:
        await self._peers.until_done("the router follows", lambda: self.target.set_route(self.target.alone()))

    async def _drain(self, name: str) -> None:
        """Wait for the requests that a release still answers, as long as `drain` allows and no rollback waits."""
        loop = asyncio.get_running_loop()
        until = loop.time() + self._peers.timing.drain
        left = 0
        while loop.time() < until and self.target.route.champion is not None:
            try:
                left = in_flight(await self._peers.router.counts(self.target.name), name)
                if not left:
                    return
            except RouterError as error:
                log("counts_missing", rollout=self.rollout.id, error=error)
            if self._hurried.is_set():
                break
            await asyncio.sleep(min(self._peers.timing.retry, 0.2))
        if left:
            when = "at a rollback" if self._hurried.is_set() else f"after {self._peers.timing.drain:.0f} s"
            message = f"{left} requests on {name} were still in flight {when}"
            self._journal.save(self.status.state, message)

    async def _unless_hurried(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Wait for it, but no longer than until a rollback waits; the task may go on."""
        task, hurried = asyncio.create_task(work), asyncio.create_task(self._hurried.wait())
        try:
            await asyncio.wait((task, hurried), return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            await _end(task)
            raise
        finally:
            await _end(hurried)
        if task.done():
            task.result()
        return task

    async def _finish(self) -> None:
        """End the record, with its evidence unless a rollback waits; then `left` is what goes on."""
        storing = await self._unless_hurried(self._stored())
        if storing.done():
            self._journal.keep(storing.result())
            return
        words = _words(self.status.outcome or "rolled_back")
        message = f"finished: {words}; a rollback waits, so the evidence is stored meanwhile"
        self._journal.save("finished", message, champion=self.target.record.champion, weight=0.0, step=None)
        self.left = storing

    async def keep_left(self) -> None:
        """Once it has ended: keep the record with the evidence that was still being stored then, if it was."""
        if self.left is not None:
            self._journal.keep(await self.left)

    async def _stored(self) -> Rollout:
        """Leave the evidence; returns the ended record. A store that takes none does not keep the verdict waiting."""
        uri = evidence.evidence_uri(self._peers.store, self.rollout.id)
        champion = self.target.record.champion
        words = _words(self.status.outcome or "rolled_back")
        finished = self._journal.noted(
            "finished", f"finished: {words}", champion=champion, evidence=uri, weight=0.0, step=None
        )
        looks = self._records.looks(self.rollout.id)
        for left in reversed(range(_EVIDENCE_TRIES)):
            try:
                await asyncio.to_thread(evidence.commit, self._peers.store, finished, looks)
                break
            except (AnemoneError, OSError) as error:
                log("evidence_pending", rollout=self.rollout.id, error=error)
                if left:
                    await asyncio.sleep(self._peers.timing.retry)
                else:
                    reason = f"finished: {words}; the evidence could not be stored ({error}), it is in {looks}"
                    finished = self._journal.noted("finished", reason, champion=champion, weight=0.0, step=None)
        return finished


def _words(outcome: Outcome) -> str:
    return outcome.replace("_", " ")


async def _end(task: asyncio.Task[Any]) -> None:
    """Cancel a task and wait for it; its error stays with it."""
    task.cancel()
    await asyncio.wait((task,))
