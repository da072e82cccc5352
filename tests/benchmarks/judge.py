"""How often the canary's judge is wrong, and how soon it is right, beside two rules that are widely used.

    .anemone/venvs/serving/bin/python tests/benchmarks/judge.py           # 1,000 rollouts a setting, about 5 minutes

Every rollout follows the policy's defaults (but for the time that a low traffic needs, which its rows say) and is
decided by `judge.decide` alone. Answers take a time that is drawn from a lognormal distribution; slow is
what the controller calls so: beyond the limit that it would freeze from as many of the champion's times as the policy
asks for, with the policy's tolerance. Where the traffic is too low for that before the first step, slow answers count
from when the champion has answered enough. The other rules see the same requests: "twice the champion's rate in a
window of a minute, twice in a row", and a one-sided z-test of the cumulative counts at every analysis run, at the same
alpha. Neither of them can promote; they are asked for a rollback for as long as the rollout lasts, and for at least the
time that a good canary takes.

Fails where the judge breaks a promise: more false roll backs than alpha, or more promotions of a canary at or above
the limit than its alpha, by more than three standard errors.
"""

from __future__ import annotations

import math
import statistics
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from statistics import NormalDist

import frame
import numpy as np

from include.release.rollouts import CanaryPolicy
from jobs.serving.canary.analysis.baseline import slow_seconds
from jobs.serving.canary.analysis.judge import Arm, Evidence, Generation, Golden, decide
from jobs.serving.router.counts import Histogram

POLICY = CanaryPolicy()
LOW_TRAFFIC = POLICY.model_copy(update={"look_seconds": 60.0, "max_seconds": 6 * 3600.0})
"""An analysis run as often as there is something to see."""

MEDIAN_SECONDS, SPREAD = 0.2, 0.5
"""Of an answer's time: median and standard deviation of its natural logarithm."""

_BLOCK = 64
_WINDOW_SECONDS = 60.0


def _constant(rate: float) -> Callable[[float], float]:
    return lambda _seconds: rate


def _drifting(seconds: float) -> float:
    """Return a rate that goes from 0 to 2% and back every half an hour."""
    return 0.01 * (1 - math.cos(2 * math.pi * seconds / 1800))


@dataclass(frozen=True)
class Setting:
    """Rates of failed requests by seconds of both arms; traffic in requests a second.

    `times_as_long` is how many times as long as the champion's the canary's answers take.
    """

    traffic: float
    name: str
    champion: Callable[[float], float]
    canary: Callable[[float], float]
    times_as_long: float = 1.0

    @property
    def policy(self) -> CanaryPolicy:
        return LOW_TRAFFIC if self.traffic < 1 else POLICY

    @property
    def label(self) -> str:
        """The traffic, and how the policy differs from the defaults."""
        differs = f" (look_seconds {self.policy.look_seconds:.0f}, max_seconds {self.policy.max_seconds / 3600:g} h)"
        return f"{self.traffic:g}{differs if self.policy != POLICY else ''}"

    @property
    def is_harmful(self) -> bool:
        return self.canary is not self.champion or self.times_as_long > 1


def settings() -> Iterator[Setting]:
    for traffic in (0.2, 5.0, 50.0):
        for base in (0.0, 0.001, 0.01):
            rate = _constant(base)
            yield Setting(traffic, f"equal, {base:.1%} fail", rate, rate)
        yield Setting(traffic, "equal, drifting 0–2%", _drifting, _drifting)
        yield Setting(traffic, "both at the limit, 2%", *[_constant(0.02)] * 2)
        yield Setting(traffic, "both bad, 5%", *[_constant(0.05)] * 2)
        for times in (2, 3, 10):
            yield Setting(traffic, f"1%, canary ×{times}", _constant(0.01), _constant(0.01 * times))
        yield Setting(traffic, "0.1%, canary 2%", _constant(0.001), _constant(0.02))
        rate = _constant(0.001)
        for times in (1.25, 1.5, 2):
            yield Setting(traffic, f"0.1%, canary's answers take ×{times:g}", rate, rate, times)


def freeze(policy: CanaryPolicy, draw: np.random.Generator) -> float:
    """Return the limit of a slow answer in seconds, as the controller freezes it from the champion's times."""
    histogram = Histogram()
    for seconds in draw.lognormal(math.log(MEDIAN_SECONDS), SPREAD, policy.baseline_requests).tolist():
        histogram.add(seconds)
    limit = slow_seconds({"first_token": [], "total": histogram.as_json()}, policy).total
    assert limit is not None
    return limit


def share_beyond(limit: float, times_as_long: float = 1.0) -> float:
    """Return the share of the answers that take longer than a limit."""
    return 1 - NormalDist(math.log(MEDIAN_SECONDS * times_as_long), SPREAD).cdf(math.log(limit))


class Requests:
    """Requests of one analysis run after another, drawn in blocks: (finished, failed, slow) of both arms."""

    def __init__(self, setting: Setting, policy: CanaryPolicy, limit: float, draw: np.random.Generator) -> None:
        self._setting = setting
        self._slow = (share_beyond(limit, setting.times_as_long), share_beyond(limit))
        self._seconds = policy.look_seconds
        self._draw = draw
        self._runs = 0
        self._weight = -1.0
        self._block: Iterator[tuple[tuple[int, int, int], tuple[int, int, int]]] = iter(())

    def next(self, weight: float) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
        """Return the next requests of canary and champion."""
        if weight != self._weight:
            self._weight, self._block = weight, iter(())
        found = next(self._block, None)
        if found is None:
            self._block = self._make(weight)
            found = next(self._block)
        self._runs += 1
        return found

    def _make(self, weight: float) -> Iterator[tuple[tuple[int, int, int], tuple[int, int, int]]]:
        setting, draw = self._setting, self._draw
        times = [self._seconds * (self._runs + offset) for offset in range(_BLOCK)]
        arms = []
        for share, rate, slow in (
            (weight, setting.canary, self._slow[0]),
            (1 - weight, setting.champion, self._slow[1]),
        ):
            finished = draw.poisson(setting.traffic * self._seconds * share, _BLOCK)
            failed = draw.binomial(finished, [rate(seconds) for seconds in times])
            arms.append(
                list(
                    zip(
                        finished.tolist(), failed.tolist(), draw.binomial(finished - failed, slow).tolist(), strict=True
                    )
                )
            )
        return iter(zip(*arms, strict=True))


@dataclass
class Rules:
    """The two other rules, on failed requests or on slow answers."""

    event: int
    window: deque[tuple[int, int, int, int]]
    totals: list[int] = field(default_factory=lambda: [0, 0, 0, 0])
    hits: int = 0
    threshold: bool = False
    z_test: bool = False

    def update(self, canary: tuple[int, int, int], champion: tuple[int, int, int]) -> None:
        seen = (canary[0], canary[self.event], champion[0], champion[self.event])
        self.window.append(seen)
        self.totals = [total + number for total, number in zip(self.totals, seen, strict=True)]
        n1, e1, n2, e2 = map(sum, zip(*self.window, strict=True))
        self.hits = self.hits + 1 if n1 and n2 and e1 / n1 > 2 * e2 / n2 else 0
        self.threshold |= self.hits >= 2
        n1, e1, n2, e2 = self.totals
        if n1 and n2 and e1 + e2:
            pooled = (e1 + e2) / (n1 + n2)
            error = math.sqrt(pooled * (1 - pooled) * (1 / n1 + 1 / n2))
            self.z_test |= bool(error) and (e1 / n1 - e2 / n2) / error > NormalDist().inv_cdf(1 - POLICY.alpha)


@dataclass(frozen=True)
class Ended:
    """The end of one rollout."""

    action: str
    requests: int
    analysis_runs: int
    slow: float
    threshold: bool
    z_test: bool


def simulate(setting: Setting, draw: np.random.Generator) -> Ended:
    """Simulate one rollout, by the same sequence of evidence that the controller would see."""
    policy = setting.policy
    limit = freeze(policy, draw)
    requests = Requests(setting, policy, limit, draw)
    baseline = round(setting.traffic * policy.baseline_seconds)
    judged = baseline >= policy.baseline_requests
    event = 2 if setting.times_as_long > 1 else 1
    rules = Rules(event, deque(maxlen=max(1, round(_WINDOW_SECONDS / policy.look_seconds))))
    least = math.ceil(len(policy.steps) * policy.step_seconds / policy.look_seconds)
    before: list[Generation] = []
    step, entered, run = 0, 0.0, 0
    canary, champion = [0, 0, 0], [0, 0, 0]
    ended: tuple[str, int, int] | None = None
    while ended is None or run < least:
        run += 1
        seen_canary, seen_champion = requests.next(policy.steps[step])
        if not judged:
            seen_canary, seen_champion = (*seen_canary[:2], 0), (*seen_champion[:2], 0)
        rules.update(seen_canary, seen_champion)
        if ended is not None:
            continue
        for total, seen in ((canary, seen_canary), (champion, seen_champion)):
            for index, number in enumerate(seen):
                total[index] += number
        now = Generation.model_construct(
            key=str(step),
            step=step,
            weight=policy.steps[step],
            current=True,
            latency_judged=judged,
            champion=_arm(champion),
            canary=_arm(canary),
        )
        elapsed = run * policy.look_seconds
        limit_found = False
        if not judged:
            baseline += seen_champion[0] - seen_champion[1]
            limit_found = judged = baseline >= policy.baseline_requests
        evidence = Evidence.model_construct(
            step=step,
            elapsed=elapsed,
            step_elapsed=elapsed - entered,
            held=None,
            resumes=0,
            counted=True,
            missed=0,
            golden=Golden.model_construct(asked=16, same=16, step_elapsed=0.0),
            latency_judged=judged,
            baseline_answers=baseline,
            generations=(*before, now),
        )
        action = decide(policy, evidence).action
        if action not in ("go_on", "next_step"):
            ended = (action, sum(part.canary.finished for part in (*before, now)), run)
        elif action == "next_step" or limit_found:
            before.append(now)
            canary, champion = [0, 0, 0], [0, 0, 0]
            if action == "next_step":
                step, entered = step + 1, elapsed
    return Ended(*ended, slow=share_beyond(limit), threshold=rules.threshold, z_test=rules.z_test)


def _arm(counts: list[int]) -> Arm:
    """Return the counts of an arm of which every answer is read, and only those that failed are bad."""
    finished, failed, slow = counts
    return Arm.model_construct(finished=finished, failed=failed, slow=slow, sampled=finished, bad=failed)


def at_limit(setting: Setting) -> bool:
    """Return whether the canary fails at least as often as the policy allows, all the time."""
    return min(setting.canary(seconds) for seconds in range(0, 3600, 60)) >= setting.policy.max_bad_rate


def broken_promise(setting: Setting, runs: list[Ended]) -> str | None:
    """Return what the judge did more often than it may, None where it kept its promises."""
    policy = setting.policy

    def exceeds(action: str, alpha: float) -> bool:
        share = sum(run.action == action for run in runs) / len(runs)
        return share > alpha + 3 * math.sqrt(alpha * (1 - alpha) / len(runs))

    if not setting.is_harmful and exceeds("roll_back", policy.alpha):
        return "false roll backs above alpha"
    if at_limit(setting) and exceeds("promote", policy.promotion_alpha):
        return "false promotions above promotion_alpha"
    return None


def measure(small: bool) -> list[frame.Row]:
    count = 20 if small else 1000
    print(
        "| requests/s | arms | rolled back | promoted | inconclusive | "
        "canary's requests, analysis runs to a verdict (median) | threshold rule: rolled back | z-test: rolled back |\n"
        "|---|---|---|---|---|---|---|---|"
    )
    began, broken = time.monotonic(), []
    slow: list[float] = []
    rolled_back, promoted = [], []
    for number, setting in enumerate(settings()):
        draw = np.random.default_rng(number)
        runs = [simulate(setting, draw) for _ in range(count)]
        slow += [run.slow for run in runs]
        shares = [sum(run.action == action for run in runs) for action in ("roll_back", "promote", "inconclusive")]
        others = [sum(getattr(run, rule) for run in runs) for rule in ("threshold", "z_test")]
        cells = [f"{count / len(runs):.1%}" for count in (*shares, *others)]
        medians = [statistics.median(getattr(run, key) for run in runs) for key in ("requests", "analysis_runs")]
        middle = f"{medians[0]:.0f}, {medians[1]:.0f}"
        print(f"| {setting.label} | {setting.name} | {' | '.join([*cells[:3], middle, *cells[3:]])} |", flush=True)
        if not setting.is_harmful:
            rolled_back.append(shares[0] / len(runs))
        if at_limit(setting):
            promoted.append(shares[1] / len(runs))
        if problem := broken_promise(setting, runs):
            broken.append(f"{setting.traffic:g} requests/s, {setting.name}: {problem}")
    print(
        f"\n{count} rollouts a setting, {time.monotonic() - began:.0f} s. Slow: beyond "
        f"{POLICY.latency_tolerance:g} times the {POLICY.latency_quantile:.0%} quantile of {POLICY.baseline_requests} "
        f"of the champion's times (lognormal, σ = {SPREAD:g}). Of equal arms' answers that is "
        f"{statistics.mean(slow):.1%} (in one rollout {min(slow):.1%} to {max(slow):.1%})."
    )
    for problem in broken:
        print(f"error: {problem}", file=sys.stderr)
    print()
    shown = (
        f"{count:,} simulated rollouts a setting, the policy's defaults; the worst setting, all settings as the range"
    )
    return [
        _worst("judge: a canary as good as the champion rolled back", rolled_back, POLICY.alpha, count, shown),
        _worst("judge: a canary at or above the limit promoted", promoted, POLICY.promotion_alpha, count, shown),
    ]


def _worst(what: str, shares: list[float], alpha: float, count: int, conditions: str) -> frame.Row:
    # Three standard errors of a share that is exactly alpha: so many the simulation itself may be off.
    limit = alpha + 3 * math.sqrt(alpha * (1 - alpha) / count)
    worst = max(shares)
    return frame.Row(what, "", worst, None, worst, (min(shares), worst), ("<=", limit), conditions)


if __name__ == "__main__":
    frame.main(__doc__, measure)
