"""One rollout, led from wherever its record stands to its end.

    pending → precheck → load → ready → smoke → step … → promoted → finished
                                                       ↘ rolling_back → finished

The record's state `promoted` is the commit point. Whatever happens before it goes back to the champion, or begins
again at the first step; whatever happens after it goes forward. Every action can be done twice.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from typing import Any, NamedTuple

from include.artifacts.store import Store
from include.errors import AnemoneError
from include.rollouts import LiveRelease, Note, Outcome, Release, RolloutStatus, State
from jobs.canary import evidence, judge
from jobs.canary.baseline import Baseline
from jobs.canary.lease import Lease
from jobs.canary.looks import Heading, Look, Looks
from jobs.canary.observation import Observation, in_flight
from jobs.canary.peers import Peers
from jobs.canary.quality import Checker, GoldenPrompt, spread
from jobs.canary.records import Records, Rollout
from jobs.canary.router import ConflictError, RouterError
from jobs.canary.servers import Servers
from jobs.canary.target import Target
from jobs.canary.watch import Watch
from jobs.router.log import log
from jobs.router.routes import SlowSeconds, Split
from jobs.triton.client import TritonError

MAX_RESTARTS = 2
_AT_ONCE = 4
_EVIDENCE_TRIES = 3


class Verdict(NamedTuple):
    """How a rollout is decided."""

    outcome: Outcome
    reasons: tuple[str, ...] = ()


class _UnansweredError(Exception):
    """A peer was away for longer than patience lasts."""


class Runner:
    """Leads one rollout. `rollout` is its record as it is durable, but for the newest figures."""

    def __init__(self, rollout: Rollout, target: Target, records: Records, collect: Callable[[], Any]) -> None:
        """
        Args:
            collect: coroutine function that unloads and removes what nobody needs.
        """
        self.rollout = rollout
        self.target = target
        self._records = records
        self._collect = collect
        self._peers: Peers = target.peers
        self._policy = rollout.request.policy
        self._halt = asyncio.Event()
        self._interruption: str | None = None
        self._fault: str | None = None
        self._resumes = 0
        self._resumed = asyncio.Event()
        if rollout.status.name is not None:
            target.needs.add(rollout.status.name)

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
        self.rollout = self.rollout.model_copy(update={"stop": reason})
        self._records.save_rollout(self.rollout)
        self._halt.set()

    def resume(self) -> None:
        """Let a held canary be watched for another `max_seconds`; said again before it goes on, it is said once."""
        if not self._resumed.is_set():
            self._resumes += 1
            self._resumed.set()

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
        try:
            if self.status.state == "promoted":
                await self._forward()
            elif self.status.state == "rolling_back":
                await self._back()
        finally:
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
                except _UnansweredError as error:
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
        self._save("precheck", f"{reason}; {what}", restarts=restarts, step=None, weight=0.0, reasons=(reason,))

    def _interrupt(self, reason: str) -> None:
        self._interruption = reason
        self._halt.set()

    async def _lead(self) -> Verdict:
        self._save("precheck", "precheck: what is live, the engine, Triton and the router", reasons=())
        release = self._resolve()
        if isinstance(release, str):
            return Verdict("refused", (release,))
        if refusal := await self._precheck(release):
            return Verdict("refused", (refusal,))
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
                    raise _UnansweredError(str(error)) from None
                self.target.holder = lease.holder
            try:
                golden = await self._load(release)
            except (AnemoneError, OSError) as error:
                await self._require(self._peers.canary, None)
                await self._require(self._peers.stable, champion)
                return Verdict("rolled_back", (f"the release cannot be loaded: {error}",))
            live = self.rollout.release
            assert live is not None
            if champion is not None and live.name == champion.name:
                self._save("smoke", f"{live.name} is live already")
                return Verdict("promoted")
            if problem := await self._prove(live.name, golden):
                await self._require(self._peers.canary, live)
                return Verdict("rolled_back", (problem,))
            if champion is None or self.rollout.request.kind == "rollback":
                return await self._take_over(live)
            self.target.interrupt = self._interrupt
            self.target.canary = live.name
            verdict = await self._steps(live.name, champion, golden)
            return await self._take_over(live) if verdict.outcome == "promoted" else verdict

    async def _take_over(self, live: LiveRelease) -> Verdict:
        """Before it is decided that it takes all of the traffic, every stable server has it and answers with it."""
        peers = self._peers
        if peers.stable is peers.canary:
            return Verdict("promoted")
        self._save(self.status.state, f"loading {live.name} on {peers.stable.name}")
        loop = asyncio.get_running_loop()
        until = loop.time() + peers.timing.patience
        while problem := await self._unfit(live):
            if loop.time() > until:
                return Verdict("rolled_back", (f"{peers.stable.name} cannot take {live.name} over: {problem}",))
            await asyncio.sleep(peers.timing.retry)
        return Verdict("promoted")

    async def _unfit(self, live: LiveRelease) -> str | None:
        """Why the stable servers cannot take its traffic now."""
        stable = self._peers.stable
        try:
            async with self._peers.repository_lock:
                await stable.restore(live)
            await stable.load(live.name)
            if problem := await self._peers.problem(stable, live.name):
                return str(problem)
            lacking = await stable.lacking(live.name)
        except (AnemoneError, OSError) as error:
            return str(error)
        return f"{', '.join(lacking)} do not have it" if lacking else None

    async def _require(self, servers: Servers, live: LiveRelease | None) -> None:
        """A release is not to blame where Triton itself has gone, and what was loaded with it."""
        try:
            there = live is None or live.name in await servers.loaded()
        except TritonError:
            there = False
        if not there or not await servers.live():
            raise _UnansweredError(f"{servers.name} has gone, or has lost its models")

    def _resolve(self) -> LiveRelease | str:
        """What is to be brought, or why that is refused."""
        request, record = self.rollout.request, self.target.record
        if request.release is not None:
            if request.kind == "release" and (refusal := self._fence(request.release)):
                return refusal
            if request.drill != "none" and record.champion is None:
                return f"nothing is live on {record.target}: a drill needs a champion to go back to"
            return LiveRelease(name="", release=request.release, since=self.rollout.asked, drill=request.drill)
        known = [live for live in (record.champion, *record.previous) if live is not None]
        if request.version is None:
            if not record.previous:
                return f"nothing was live on {record.target} before: name a release or a version"
            return record.previous[0]
        for live in known:
            if live.release.version == request.version:
                return live
        versions = ", ".join(dict.fromkeys(live.release.version for live in known)) or "none"
        return f"version {request.version} was never live on {record.target} (known: {versions}): release it instead"

    def _fence(self, release: Release) -> str | None:
        champion = self.target.record.champion
        expected = self.rollout.request.expected_champion
        if champion is None or champion.release.version in (expected, release.version):
            return None
        with_whom = f"version {expected}" if expected else "no champion"
        return (
            f"version {release.version} was compared with {with_whom}, but version {champion.release.version} is live "
            f"by now: compare it with that one first (where MLflow's champion is not version "
            f"{champion.release.version} yet, clear the task promote of the run that brought it)"
        )

    async def _precheck(self, live: LiveRelease) -> str | None:
        engine = live.release.engine
        # A copy that is installed is as good as the artifact, and verified again when it is loaded.
        if not await self._held(live.release):
            try:
                store, name = Store.of(engine.uri)
                manifest = await asyncio.to_thread(store.manifest, name)
            except (AnemoneError, OSError) as error:
                return f"the engine cannot be read: {error}"
            if manifest is None or manifest.content_digest != engine.digest:
                found = "is gone" if manifest is None else f"holds other bytes ({manifest.content_digest[:12]})"
                return f"the engine {engine.uri} ({engine.digest[:12]}) {found}: build it again"
        timing = self._peers.timing
        until = asyncio.get_running_loop().time() + timing.patience
        while problem := await self._unready():
            if asyncio.get_running_loop().time() > until:
                return f"{problem}, for {timing.patience:.0f} s"
            await asyncio.sleep(timing.retry)
        return None

    async def _held(self, release: Release) -> bool:
        try:
            return await self._peers.canary.holds(release)
        except TritonError:
            return False

    async def _unready(self) -> str | None:
        """Why no rollout can begin now: the router, Triton, or the champion does not answer."""
        try:
            await self.target.keep_route()
        except RouterError as error:
            return str(error)
        for servers in self._peers.tiers:
            if not await servers.live():
                return f"{servers.name} does not answer"
        champion = self.target.record.champion
        # A rollback is what a champion that does not answer may need.
        if champion is None or self.rollout.request.kind == "rollback":
            return None
        problem = await self._peers.problem(self._peers.stable, champion.name)
        return f"the champion {champion.name} does not answer ({problem})" if problem else None

    async def _load(self, live: LiveRelease) -> list[GoldenPrompt]:
        """Install and load; the name is known from then on. Raises AnemoneError or OSError where that fails."""
        canary = self._peers.canary
        self._save("load", f"loading version {live.release.version}")
        async with self._peers.repository_lock:
            name = await canary.install(live)
            self.target.needs.add(name)
        live = live.model_copy(update={"name": name, "since": datetime.now(UTC)})
        self.rollout = self.rollout.model_copy(update={"release": live})
        self._save("load", f"{name} is installed", name=name)
        await canary.load(name)
        return await canary.golden(live.release)

    async def _prove(self, name: str, golden: list[GoldenPrompt]) -> str | None:
        """Have it answer for real, then give the very texts that its engine gave; returns what is wrong."""
        self._save("ready", f"{name} is loaded: a first real request")
        canary = self._peers.canary
        if problem := await self._peers.problem(canary, name):
            try:
                await canary.reload(name)
            except TritonError as error:
                return f"{name} does not answer, and cannot be loaded again: {error}"
            if problem := await self._peers.problem(canary, name):
                return f"{name} is loaded, but does not answer: {problem}"
        quality = self._policy.quality
        self._save("smoke", f"{name} answers: the golden prompts")
        asked, same, problem = await self._ask_golden(name, golden)
        if same >= quality.min_golden * asked:
            self._save("smoke", f"{same} of {asked} golden prompts gave the engine's own text")
            return None
        return (
            f"{same} of {asked} golden prompts gave the text that the engine gave when it was built, at least "
            f"{quality.min_golden:.0%} have to" + (f" ({problem})" if problem else "")
        )

    async def _ask_golden(self, name: str, golden: list[GoldenPrompt]) -> tuple[int, int, str | None]:
        """How many were asked, how many gave the engine's own text, and the last error."""
        chosen = spread(golden, self._policy.quality.golden_prompts)
        gate = asyncio.Semaphore(_AT_ONCE)
        problems = []

        async def is_same(prompt: GoldenPrompt) -> bool:
            async with gate:
                try:
                    answer = await self._peers.canary.generate(
                        name, messages=list(prompt.messages), timeout=self._peers.timing.golden
                    )
                except TritonError as error:
                    problems.append(str(error))
                    return False
            return answer.text == prompt.answer

        same = sum(await asyncio.gather(*map(is_same, chosen)))
        return len(chosen), same, problems[-1] if problems else None

    # Under traffic.

    async def _steps(self, name: str, champion: LiveRelease, golden: list[GoldenPrompt]) -> Verdict:
        policy = self._policy
        since = await self._router_position()
        if self.rollout.counted_from is None:
            self.rollout = self.rollout.model_copy(update={"counted_from": since})
        route = Split(champion=champion.name, canary=name, sample=policy.sample)
        await self._set_route(route)
        baseline = Baseline(self._peers.router, self.target.name, champion.name, policy, since)
        await self._measure(baseline)
        looks = Looks(self._records.looks(self.rollout.id), Heading(rollout=self.rollout.id, policy=policy))
        last = looks.last()
        assert self.rollout.counted_from is not None
        observation = Observation(
            self._peers.router,
            self.target.name,
            name,
            policy,
            Checker(policy.quality, golden),
            counted_from=self.rollout.counted_from,
            attempt_from=since,
            carried=last.evidence.generations if last else (),
        )
        watch = Watch(policy, observation, baseline)
        for step, weight in enumerate(policy.steps):
            route = route.model_copy(update={"weight": weight, "slow_seconds": baseline.limits})
            await self._set_route(route)
            watch.enter(step)
            note = f"step {step + 1} of {len(policy.steps)}: {weight:.4g} of the traffic"
            self._save("step", note, step=step, weight=weight)
            look = await self._watch_step(route, golden, looks, watch)
            if look.action == "promote":
                return self._proven()
            if look.action == "roll_back":
                return Verdict("rolled_back", look.reasons)
            if look.action == "inconclusive":
                return Verdict("inconclusive", look.reasons)
        raise AssertionError("the last step ends with a verdict")

    def _proven(self) -> Verdict:
        """A drill that nobody noticed is a finding about the policy; it must not become the champion."""
        drill = self.rollout.request.drill
        if drill == "none":
            return Verdict("promoted")
        return Verdict(
            "rolled_back",
            (f"the drill {drill!r} went unnoticed: a release as bad as this would have been promoted; ask for more "
             "time or requests (canary.step_seconds, canary.min_requests)",),
        )  # fmt: skip

    async def _watch_step(self, route: Split, golden: list[GoldenPrompt], looks: Looks, watch: Watch) -> Look:
        """Look again and again, until the step is over."""
        assert route.canary is not None and route.champion is not None
        while True:
            await self._pause(watch)
            await self._observe(route.canary, route.champion, golden, watch)
            if not route.slow_seconds.total and watch.baseline.is_known:
                route = route.model_copy(update={"slow_seconds": watch.baseline.limits})
                await self._set_route(route)
                self._save(self.status.state, f"latency is judged from now on: {_limits_in_words(route.slow_seconds)}")
            look = looks.append(self.status.restarts, watch.evidence(self._resumes))
            self._set_status(figures=look.figures, reasons=look.reasons)
            log(
                "look",
                rollout=self.rollout.id,
                step=watch.step,
                action=look.action,
                **{key: look.figures[key] for key in ("seconds", "canary_requests", "canary_failed", "canary_bad")},
            )
            if look.action == "hold" and not watch.is_held:
                watch.hold()
                self._resumed.clear()
                self._save("held", f"held, {'; '.join(look.reasons)}: say resume or abort")
                continue
            if look.action in ("next_step", "promote", "roll_back", "inconclusive"):
                return look
            if (
                not watch.is_held
                and not watch.extended
                and watch.elapsed >= self._policy.max_seconds * (1 + self._resumes)
            ):
                watch.extended = True
                self._save("step", f"not enough evidence yet, extended: {'; '.join(look.reasons)}")

    async def _pause(self, watch: Watch) -> None:
        """Until the next look, or until a person says resume."""
        if not watch.is_held:
            await asyncio.sleep(self._policy.look_seconds)
            return
        try:
            await asyncio.wait_for(self._resumed.wait(), self._policy.look_seconds)
        except TimeoutError:
            return
        self._resumed.clear()
        watch.release()
        self._save("step", f"resumed: watched for another {self._policy.max_seconds:.0f} s")

    async def _observe(self, name: str, champion: str, golden: list[GoldenPrompt], watch: Watch) -> None:
        canary_problem, champion_problem = await asyncio.gather(
            self._peers.problem(self._peers.canary, name), self._peers.problem(self._peers.stable, champion)
        )
        if canary_problem is None:
            watch.missed = 0
        elif champion_problem is None:
            watch.missed += 1
        if canary_problem is None and champion_problem is None and watch.golden_is_due:
            asked, same, problem = await self._ask_golden(name, golden)
            # Where Triton itself has gone meanwhile the canary is not to blame.
            if problem is None or await self._peers.problem(self._peers.stable, champion) is None:
                watch.golden = judge.Golden(asked=asked, same=same, step_elapsed=watch.step_elapsed)
        try:
            await watch.observation.look()
            await watch.baseline.look()
            watch.counted = True
        except RouterError as error:
            watch.counted = False
            log("counts_missing", rollout=self.rollout.id, error=error)

    async def _measure(self, baseline: Baseline) -> None:
        """The champion alone, until its times are known, or the time for that is over."""
        policy = self._policy
        self._save("step", f"baseline: {policy.baseline_requests} answers of the champion", step=0, weight=0.0)
        loop = asyncio.get_running_loop()
        until = loop.time() + policy.baseline_seconds
        while loop.time() < until:
            with contextlib.suppress(RouterError):
                if await baseline.look():
                    self._save("step", f"baseline: {_limits_in_words(baseline.limits)}", step=0)
                    return
            await asyncio.sleep(min(policy.look_seconds, self._peers.timing.retry))
        self._save(
            "step",
            f"baseline: {baseline.answers} of {policy.baseline_requests} answers in {policy.baseline_seconds:.0f} s, "
            "latency is not judged yet",
            step=0,
        )

    async def _router_position(self) -> tuple[str, int]:
        """Boot and generation of the router now."""
        state = await self._patiently(self._peers.router.state)
        found = state["targets"].get(self.target.name)
        return state["boot"], found["generation"] if found else 0

    async def _set_route(self, route: Split) -> None:
        async def attempt() -> None:
            await self.target.set_route(route)

        await self._patiently(attempt)

    async def _patiently(self, attempt: Callable[[], Any]) -> Any:
        loop = asyncio.get_running_loop()
        until = loop.time() + self._peers.timing.patience
        while True:
            try:
                return await attempt()
            except RouterError as error:
                if loop.time() > until:
                    raise _UnansweredError(str(error)) from None
            await asyncio.sleep(self._peers.timing.retry)

    # The commit point, and after it.

    def _decide(self, verdict: Verdict) -> None:
        """Make the verdict durable. No other moment changes what the target is to serve."""
        promoted = verdict.outcome == "promoted"
        if promoted:
            live = self.rollout.release
            assert live is not None
            self.rollout = self.rollout.model_copy(
                update={"release": live.model_copy(update={"since": datetime.now(UTC)})}
            )
        note = f"promoted: {self.status.name}" if promoted else f"{_words(verdict.outcome)}: {verdict.reasons[0]}"
        self._save(
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
        # Triton may have been started again since.
        await self._peers.until_done("the new champion is loaded", lambda: self.target.ensure_loaded(champion))
        await self._route_champion()
        self._set_status(weight=0.0)
        if former is not None and former.name != champion.name:
            await self._drain(former.name)
        self._save("promoted", f"{champion.name} takes all of the traffic")

    async def _back(self) -> None:
        await self._route_champion()
        self._set_status(weight=0.0)
        name = self.status.name
        champion = self.target.record.champion
        if name is not None and (champion is None or champion.name != name):
            await self._drain(name)
            self._save("rolling_back", f"{name} has no traffic and no request in flight")
            self.target.needs.discard(name)
            await self._collect()

    async def _route_champion(self) -> None:
        await self._peers.until_done("the router follows", lambda: self.target.set_route(self.target.alone()))

    async def _drain(self, name: str) -> None:
        """Wait for the requests that a release still answers, as long as `drain` allows."""
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
            await asyncio.sleep(min(self._peers.timing.retry, 0.2))
        if left:
            message = f"{left} requests on {name} were still in flight after {self._peers.timing.drain:.0f} s"
            self._save(self.status.state, message)

    async def _finish(self) -> None:
        """Leave the evidence; a store that takes none does not keep the verdict waiting."""
        uri = evidence.evidence_uri(self._peers.store, self.rollout.id)
        champion = self.target.record.champion
        words = _words(self.status.outcome or "rolled_back")
        finished = self._with("finished", f"finished: {words}", champion=champion, evidence=uri, weight=0.0, step=None)
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
                    finished = self._with("finished", reason, champion=champion, weight=0.0, step=None)
        self._keep(finished)

    # The record.

    def _save(self, state: State, message: str, **changes: Any) -> None:
        self._keep(self._with(state, message, **changes))

    def _keep(self, rollout: Rollout) -> None:
        self._records.save_rollout(rollout)
        self.rollout = rollout
        note = rollout.status.notes[-1]
        log("rollout", id=rollout.id, target=self.target.name, state=note.state, message=note.message)

    def _with(self, state: State, message: str, **changes: Any) -> Rollout:
        note = Note(time=datetime.now(UTC), state=state, message=message)
        notes = (*self.status.notes, note)
        status = self.status.model_copy(update={"state": state, "notes": notes, **changes})
        return self.rollout.model_copy(update={"status": status})

    def _set_status(self, **changes: Any) -> None:
        """What changes too often to be worth a durable write; the looks have it."""
        self.rollout = self.rollout.model_copy(update={"status": self.status.model_copy(update=changes)})


def _limits_in_words(slow: SlowSeconds) -> str:
    found = ((slow.first_token, "the first token"), (slow.total, "the end"))
    return f"slow is more than {' or '.join(f'{value * 1000:.0f} ms to {what}' for value, what in found if value)}"


def _words(outcome: Outcome) -> str:
    return outcome.replace("_", " ")


async def _end(task: asyncio.Task[Any]) -> None:
    """Cancel a task and wait for it; its error stays with it."""
    task.cancel()
    await asyncio.wait((task,))
