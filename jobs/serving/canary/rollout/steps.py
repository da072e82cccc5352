"""The steps of a canary under traffic: analysis run by analysis run, until there is a verdict."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import TypeVar

from include.release.rollouts import LiveRelease
from jobs.serving.canary.analysis import judge
from jobs.serving.canary.analysis.baseline import Baseline
from jobs.serving.canary.analysis.measurement import Measurement
from jobs.serving.canary.analysis.observation import Observation
from jobs.serving.canary.analysis.quality import Checker
from jobs.serving.canary.analysis.runs import AnalysisLog, AnalysisRun, Heading
from jobs.serving.canary.rollout.actions import Actions
from jobs.serving.canary.rollout.journal import Journal
from jobs.serving.canary.rollout.outcome import UnreachableError, Verdict
from jobs.serving.canary.servers.golden import GoldenPrompt
from jobs.serving.canary.state.records import Records
from jobs.serving.canary.target import Target
from jobs.serving.canary.traffic.interface import RouterError
from jobs.serving.log import log
from jobs.serving.router.routes import SlowSeconds, Split

T = TypeVar("T")


class Resumes:
    """A person's decisions to let a held canary go on.

    Attributes:
        count: number of such decisions.
        requested: set from the decision until the canary goes on.
    """

    def __init__(self) -> None:
        self.count = 0
        self.requested = asyncio.Event()

    def resume(self) -> None:
        """Give the canary another `max_seconds`; asked again before it goes on, this counts once."""
        if not self.requested.is_set():
            self.count += 1
            self.requested.set()


class Steps:
    """The steps of one rollout; `run` may be called again, after an interruption."""

    def __init__(self, journal: Journal, target: Target, records: Records, actions: Actions, resumes: Resumes) -> None:
        self._journal = journal
        self._target = target
        self._records = records
        self._actions = actions
        self._resumes = resumes
        self._data_plane = target.data_plane
        self._policy = journal.rollout.request.policy

    async def run(self, live: LiveRelease, champion: LiveRelease, golden: list[GoldenPrompt]) -> Verdict:
        """Give a canary more traffic, step by step, until the judge decides.

        Args:
            live: the canary, loaded and smoke-tested.

        Raises:
            UnreachableError: the router, or the canary's servers, have not answered for as long as `Timing.outage`.
        """
        policy = self._policy
        since = await self._router_position()
        if self._journal.rollout.counted_from is None:
            self._journal.change(counted_from=since)
        route = Split(champion=champion.name, canary=live.name, sample=policy.sample)
        await self._set_route(route)
        baseline = Baseline(self._data_plane.router, self._target.name, champion.name, policy, since)
        await self._measure_baseline(baseline)
        analysis_log = AnalysisLog(
            self._records.analysis_log(self._journal.rollout.id),
            Heading(rollout=self._journal.rollout.id, policy=policy),
            self._records.disk,
        )
        last = await analysis_log.last()
        assert self._journal.rollout.counted_from is not None
        observation = Observation(
            self._data_plane.router,
            self._target.name,
            live.name,
            policy,
            Checker(policy.quality, golden),
            counted_from=self._journal.rollout.counted_from,
            attempt_from=since,
            carried=last.evidence.generations if last else (),
        )
        measurement = Measurement(policy, observation, baseline)
        for step, weight in enumerate(policy.steps):
            route = route.model_copy(update={"weight": weight, "slow_seconds": baseline.limits})
            await self._set_route(route)
            measurement.enter(step)
            note = f"step {step + 1} of {len(policy.steps)}: {weight:.4g} of the traffic"
            await self._journal.save("step", note, step=step, weight=weight)
            run = await self._analyse_step(route, golden, analysis_log, measurement)
            if run.action == "promote":
                return self._proven()
            if run.action == "roll_back":
                await self._actions.require_loaded(self._data_plane.canary, live)
                return Verdict("rolled_back", run.reasons)
            if run.action == "inconclusive":
                return Verdict("inconclusive", run.reasons)
        raise AssertionError("the last step ends with a verdict")

    def _proven(self) -> Verdict:
        """Return the verdict on a canary that the judge would promote.

        A drill that nobody noticed is a finding about the policy; it must not become the champion.
        """
        drill = self._journal.rollout.request.drill
        if drill == "none":
            return Verdict("promoted")
        return Verdict(
            "rolled_back",
            (f"the drill {drill!r} went unnoticed: a release as bad as this would have been promoted; raise "
             "canary.step_seconds or canary.min_requests",),
        )  # fmt: skip

    async def _analyse_step(
        self, route: Split, golden: list[GoldenPrompt], analysis_log: AnalysisLog, measurement: Measurement
    ) -> AnalysisRun:
        """Make one analysis run after the other until one ends the step; return that."""
        assert route.canary is not None and route.champion is not None
        while True:
            await self._pause(measurement)
            await self._update(route.canary, route.champion, golden, measurement)
            if not route.slow_seconds.total and measurement.baseline.is_known:
                route = route.model_copy(update={"slow_seconds": measurement.baseline.limits})
                await self._set_route(route)
                await self._journal.save(
                    self._journal.status.state, f"latency is judged from now on: {_limits_message(route.slow_seconds)}"
                )
            run = await analysis_log.append(self._journal.status.restarts, measurement.evidence(self._resumes.count))
            self._journal.set_status(figures=run.figures, reasons=run.reasons)
            log(
                "analysis_run",
                rollout=self._journal.rollout.id,
                step=measurement.step,
                action=run.action,
                **{key: run.figures[key] for key in ("seconds", "canary_requests", "canary_failed", "canary_bad")},
            )
            if run.action == "hold" and not measurement.is_held:
                measurement.hold()
                self._resumes.requested.clear()
                await self._journal.save("held", f"held, {'; '.join(run.reasons)}: say resume or abort")
                continue
            if run.action in ("next_step", "promote", "roll_back", "inconclusive"):
                return run
            if (
                not measurement.is_held
                and not measurement.extended
                and measurement.elapsed >= self._policy.max_seconds * (1 + self._resumes.count)
            ):
                measurement.extended = True
                await self._journal.save("step", f"not enough evidence yet, extended: {'; '.join(run.reasons)}")

    async def _pause(self, measurement: Measurement) -> None:
        """Wait for the next analysis run; a held canary goes on as soon as a person resumes it."""
        if not measurement.is_held:
            await asyncio.sleep(self._policy.look_seconds)
            return
        try:
            await asyncio.wait_for(self._resumes.requested.wait(), self._policy.look_seconds)
        except TimeoutError:
            return
        self._resumes.requested.clear()
        measurement.release()
        await self._journal.save("step", f"resumed: watched for another {self._policy.max_seconds:.0f} s")

    async def _update(self, name: str, champion: str, golden: list[GoldenPrompt], measurement: Measurement) -> None:
        canary_problem, champion_problem = await asyncio.gather(
            self._data_plane.probe(self._data_plane.canary, name),
            self._data_plane.probe(self._data_plane.stable, champion),
        )
        if canary_problem is None:
            measurement.missed = 0
        elif champion_problem is None:
            measurement.missed += 1
        if canary_problem is None and champion_problem is None and measurement.golden_is_due:
            asked, same, problem = await self._actions.ask_golden(self._data_plane.canary, name, golden)
            # The canary is not to blame where Triton itself has gone meanwhile.
            if problem is None or await self._data_plane.probe(self._data_plane.stable, champion) is None:
                measurement.golden = judge.Golden(asked=asked, same=same, step_elapsed=measurement.step_elapsed)
        try:
            await measurement.observation.update()
            await measurement.baseline.update()
            measurement.counted = True
        except RouterError as error:
            measurement.counted = False
            log("counts_missing", rollout=self._journal.rollout.id, error=error)

    async def _measure_baseline(self, baseline: Baseline) -> None:
        """Count the champion's answers without a canary until its times are known, or the time for that is over."""
        policy = self._policy
        await self._journal.save(
            "step", f"baseline: {policy.baseline_requests} answers of the champion", step=0, weight=0.0
        )
        loop = asyncio.get_running_loop()
        until = loop.time() + policy.baseline_seconds
        while loop.time() < until:
            with contextlib.suppress(RouterError):
                if await baseline.update():
                    await self._journal.save("step", f"baseline: {_limits_message(baseline.limits)}", step=0)
                    return
            await asyncio.sleep(min(policy.look_seconds, self._data_plane.timing.retry))
        await self._journal.save(
            "step",
            f"baseline: {baseline.answers} of {policy.baseline_requests} answers in {policy.baseline_seconds:.0f} s, "
            "latency is not judged yet",
            step=0,
        )

    async def _router_position(self) -> tuple[str, int]:
        """Return boot and generation of the router now."""
        state = await self._ask_router(self._data_plane.router.state)
        found = state["targets"].get(self._target.name)
        return state["boot"], found["generation"] if found else 0

    async def _set_route(self, route: Split) -> None:
        async def attempt() -> None:
            await self._target.set_route(route)

        await self._ask_router(attempt)

    async def _ask_router(self, attempt: Callable[[], Awaitable[T]]) -> T:
        try:
            return await self._data_plane.retry_while(RouterError, attempt)
        except RouterError as error:
            raise UnreachableError(str(error)) from None


def _limits_message(slow: SlowSeconds) -> str:
    found = ((slow.first_token, "the first token"), (slow.total, "the end"))
    return f"slow is more than {' or '.join(f'{value * 1000:.0f} ms to {what}' for value, what in found if value)}"
