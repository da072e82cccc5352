"""A canary under traffic: step by step, look by look, until there is a verdict."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import TypeVar

from include.release.rollouts import LiveRelease
from jobs.serving.canary.analysis import judge
from jobs.serving.canary.analysis.baseline import Baseline
from jobs.serving.canary.analysis.measurement import Watch
from jobs.serving.canary.analysis.observation import Observation
from jobs.serving.canary.analysis.quality import Checker
from jobs.serving.canary.analysis.runs import Heading, Look, Looks
from jobs.serving.canary.rollout.actions import Deeds
from jobs.serving.canary.rollout.journal import Journal
from jobs.serving.canary.rollout.verdict import UnansweredError, Verdict
from jobs.serving.canary.servers.golden import GoldenPrompt
from jobs.serving.canary.state.records import Records
from jobs.serving.canary.target import Target
from jobs.serving.canary.traffic.interface import RouterError
from jobs.serving.router.log import log
from jobs.serving.router.routes import SlowSeconds, Split

T = TypeVar("T")


class Resumes:
    """What a person has said of a held canary.

    Attributes:
        count: how often it was let go on.
        said: set until it goes on.
    """

    def __init__(self) -> None:
        self.count = 0
        self.said = asyncio.Event()

    def resume(self) -> None:
        """Let it be watched for another `max_seconds`; said again before it goes on, it is said once."""
        if not self.said.is_set():
            self.count += 1
            self.said.set()


class Steps:
    """Of one rollout; `lead` may be called again, after an interruption."""

    def __init__(self, journal: Journal, target: Target, records: Records, deeds: Deeds, resumes: Resumes) -> None:
        self._journal = journal
        self._target = target
        self._records = records
        self._deeds = deeds
        self._resumes = resumes
        self._peers = target.peers
        self._policy = journal.rollout.request.policy

    async def lead(self, live: LiveRelease, champion: LiveRelease, golden: list[GoldenPrompt]) -> Verdict:
        policy = self._policy
        since = await self._router_position()
        if self._journal.rollout.counted_from is None:
            self._journal.change(counted_from=since)
        route = Split(champion=champion.name, canary=live.name, sample=policy.sample)
        await self._set_route(route)
        baseline = Baseline(self._peers.router, self._target.name, champion.name, policy, since)
        await self._measure(baseline)
        looks = Looks(
            self._records.looks(self._journal.rollout.id), Heading(rollout=self._journal.rollout.id, policy=policy)
        )
        last = looks.last()
        assert self._journal.rollout.counted_from is not None
        observation = Observation(
            self._peers.router,
            self._target.name,
            live.name,
            policy,
            Checker(policy.quality, golden),
            counted_from=self._journal.rollout.counted_from,
            attempt_from=since,
            carried=last.evidence.generations if last else (),
        )
        watch = Watch(policy, observation, baseline)
        for step, weight in enumerate(policy.steps):
            route = route.model_copy(update={"weight": weight, "slow_seconds": baseline.limits})
            await self._set_route(route)
            watch.enter(step)
            note = f"step {step + 1} of {len(policy.steps)}: {weight:.4g} of the traffic"
            self._journal.save("step", note, step=step, weight=weight)
            look = await self._watch_step(route, golden, looks, watch)
            if look.action == "promote":
                return self._proven()
            if look.action == "roll_back":
                await self._deeds.require(self._peers.canary, live)
                return Verdict("rolled_back", look.reasons)
            if look.action == "inconclusive":
                return Verdict("inconclusive", look.reasons)
        raise AssertionError("the last step ends with a verdict")

    def _proven(self) -> Verdict:
        """A drill that nobody noticed is a finding about the policy; it must not become the champion."""
        drill = self._journal.rollout.request.drill
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
                self._journal.save(
                    self._journal.status.state, f"latency is judged from now on: {_limits_in_words(route.slow_seconds)}"
                )
            look = looks.append(self._journal.status.restarts, watch.evidence(self._resumes.count))
            self._journal.set_status(figures=look.figures, reasons=look.reasons)
            log(
                "look",
                rollout=self._journal.rollout.id,
                step=watch.step,
                action=look.action,
                **{key: look.figures[key] for key in ("seconds", "canary_requests", "canary_failed", "canary_bad")},
            )
            if look.action == "hold" and not watch.is_held:
                watch.hold()
                self._resumes.said.clear()
                self._journal.save("held", f"held, {'; '.join(look.reasons)}: say resume or abort")
                continue
            if look.action in ("next_step", "promote", "roll_back", "inconclusive"):
                return look
            if (
                not watch.is_held
                and not watch.extended
                and watch.elapsed >= self._policy.max_seconds * (1 + self._resumes.count)
            ):
                watch.extended = True
                self._journal.save("step", f"not enough evidence yet, extended: {'; '.join(look.reasons)}")

    async def _pause(self, watch: Watch) -> None:
        """Until the next look, or until a person says resume."""
        if not watch.is_held:
            await asyncio.sleep(self._policy.look_seconds)
            return
        try:
            await asyncio.wait_for(self._resumes.said.wait(), self._policy.look_seconds)
        except TimeoutError:
            return
        self._resumes.said.clear()
        watch.release()
        self._journal.save("step", f"resumed: watched for another {self._policy.max_seconds:.0f} s")

    async def _observe(self, name: str, champion: str, golden: list[GoldenPrompt], watch: Watch) -> None:
        canary_problem, champion_problem = await asyncio.gather(
            self._peers.problem(self._peers.canary, name), self._peers.problem(self._peers.stable, champion)
        )
        if canary_problem is None:
            watch.missed = 0
        elif champion_problem is None:
            watch.missed += 1
        if canary_problem is None and champion_problem is None and watch.golden_is_due:
            asked, same, problem = await self._deeds.ask_golden(self._peers.canary, name, golden)
            # Where Triton itself has gone meanwhile the canary is not to blame.
            if problem is None or await self._peers.problem(self._peers.stable, champion) is None:
                watch.golden = judge.Golden(asked=asked, same=same, step_elapsed=watch.step_elapsed)
        try:
            await watch.observation.look()
            await watch.baseline.look()
            watch.counted = True
        except RouterError as error:
            watch.counted = False
            log("counts_missing", rollout=self._journal.rollout.id, error=error)

    async def _measure(self, baseline: Baseline) -> None:
        """The champion alone, until its times are known, or the time for that is over."""
        policy = self._policy
        self._journal.save("step", f"baseline: {policy.baseline_requests} answers of the champion", step=0, weight=0.0)
        loop = asyncio.get_running_loop()
        until = loop.time() + policy.baseline_seconds
        while loop.time() < until:
            with contextlib.suppress(RouterError):
                if await baseline.look():
                    self._journal.save("step", f"baseline: {_limits_in_words(baseline.limits)}", step=0)
                    return
            await asyncio.sleep(min(policy.look_seconds, self._peers.timing.retry))
        self._journal.save(
            "step",
            f"baseline: {baseline.answers} of {policy.baseline_requests} answers in {policy.baseline_seconds:.0f} s, "
            "latency is not judged yet",
            step=0,
        )

    async def _router_position(self) -> tuple[str, int]:
        """Boot and generation of the router now."""
        state = await self._by_router(self._peers.router.state)
        found = state["targets"].get(self._target.name)
        return state["boot"], found["generation"] if found else 0

    async def _set_route(self, route: Split) -> None:
        async def attempt() -> None:
            await self._target.set_route(route)

        await self._by_router(attempt)

    async def _by_router(self, attempt: Callable[[], Awaitable[T]]) -> T:
        try:
            return await self._peers.wait_out(RouterError, attempt)
        except RouterError as error:
            raise UnansweredError(str(error)) from None


def _limits_in_words(slow: SlowSeconds) -> str:
    found = ((slow.first_token, "the first token"), (slow.total, "the end"))
    return f"slow is more than {' or '.join(f'{value * 1000:.0f} ms to {what}' for value, what in found if value)}"
