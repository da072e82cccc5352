"""The decision of an analysis run, from the policy and the evidence alone: no clock, no network, always the same.

Three sequential tests compare the canary with the champion (errors, slow answers, bad answers), and roll it back
together with a probability of at most `alpha` where it is as good. That they find nothing is no reason to promote it:
for that, the bounds of its own rates of failed requests and of bad answers have to be low enough. Golden prompts and a
real request at each analysis run are hard guardrails.

The texts of the reasons are part of what `jobs.serving.canary replay` compares: a changed one makes every former
decision with it come out otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Literal, NamedTuple

from include.model import Model
from include.release.rollouts import CanaryPolicy
from jobs.serving.canary.analysis.sequential import log_evidence_below, log_excess, upper_bound

Action = Literal["go_on", "next_step", "promote", "roll_back", "inconclusive", "hold"]

MISSED_IN_A_ROW = 2
"""Number of the controller's own requests in a row that the canary leaves unanswered before it is rolled back."""

STEP_SHARE = 0.02
"""Share of `min_requests` that the canary has to answer within a step before it gets more traffic."""


class Arm(Model):
    """Counts of one arm among the requests assigned under one generation.

    Attributes:
        finished: requests that ended as answer or failure; `failed` and `slow` are among them.
        sampled: answers that were read; `bad` of them failed, were empty, or not what the policy asks for.
    """

    finished: int = 0
    failed: int = 0
    slow: int = 0
    sampled: int = 0
    bad: int = 0


class Generation(Model):
    """All requests that were assigned under one setting of the router.

    Attributes:
        key: the router's boot and its generation.
        step: index into the policy's steps.
        weight: the canary's share while it was in force.
        current: False where the rollout began again at its first step since. Such counts still speak for a roll back,
            but not about promotion: the interruption's own failures are in them. Each beginning is a new test, so the
            probability of a wrong promotion is at most `promotion_alpha` times the expected number of beginnings.
        latency_judged: whether slow answers were counted.
    """

    key: str
    step: int
    weight: float
    current: bool = True
    latency_judged: bool = True
    champion: Arm
    canary: Arm


class Golden(Model):
    """Golden prompts asked within the present step, and how many gave the very text that they gave when built."""

    asked: int
    same: int
    step_elapsed: float


class Evidence(Model):
    """All that one analysis run knows.

    Attributes:
        step: index into the policy's steps.
        elapsed: seconds since the first step began, without those in which it was held.
        step_elapsed: seconds since this step began.
        held: seconds since the canary is held, None where it is not.
        resumes: how often a person has let it go on.
        counted: whether the router's counts could be read for this analysis run.
        missed: how many of the controller's own requests in a row the canary left unanswered, champion answering.
        golden: the latest within this step.
        latency_judged: whether the limit of a slow answer is known, which the champion's own times set.
        baseline_answers: number of the champion's answers counted for that.
        generations: cumulative counts, of all steps.
    """

    step: int
    elapsed: float
    step_elapsed: float
    held: float | None = None
    resumes: int = 0
    counted: bool = True
    missed: int = 0
    golden: Golden | None = None
    latency_judged: bool = True
    baseline_answers: int = 0
    generations: tuple[Generation, ...] = ()


class Decision(NamedTuple):
    """The action that an analysis run takes, and its reasons."""

    action: Action
    reasons: tuple[str, ...] = ()


class _Comparison(NamedTuple):
    """One of the tests against the champion: which events it counts, and among what."""

    name: str
    words: str
    events: Callable[[Arm], int]
    among: Callable[[Arm], int]


COMPARISONS = (
    _Comparison("errors", "requests failed", lambda arm: arm.failed, lambda arm: arm.finished),
    _Comparison(
        "latency",
        "requests were slower than the champion's frozen quantile",
        lambda arm: arm.slow,
        lambda arm: arm.finished,
    ),
    _Comparison("quality", "answers read were bad", lambda arm: arm.bad, lambda arm: arm.sampled),
)


def decide(policy: CanaryPolicy, evidence: Evidence) -> Decision:
    """Decide what an analysis run does.

    Harm comes first, at any time. What is missing never counts as good: without counts, without traffic, or with
    both arms bad there is no promotion, and in the end an inconclusive verdict, of which the policy says what it
    means. `promote` is only ever given at the last step.
    """
    if harm := _harm(policy, evidence):
        return Decision("roll_back", harm)
    last = evidence.step == len(policy.steps) - 1
    if evidence.held is not None:
        if evidence.held >= policy.hold_seconds:
            reason = f"held for {evidence.held:.0f} s, and nobody said resume or abort"
            return Decision("inconclusive", (reason, *_missing_for_promotion(policy, evidence)))
        return Decision("hold", ("held until a person says resume or abort",))
    missing = _missing_for_promotion(policy, evidence) if last else _missing_for_next_step(policy, evidence)
    if not missing:
        return Decision("promote" if last else "next_step")
    if evidence.elapsed >= deadline(policy, evidence.resumes):
        reasons = (
            f"not enough evidence after {evidence.elapsed:.0f} s, at step {evidence.step + 1} of {len(policy.steps)}",
            *_missing_for_promotion(policy, evidence),
        )
        return Decision("hold" if policy.inconclusive == "hold" else "inconclusive", reasons)
    return Decision("go_on", missing)


def deadline(policy: CanaryPolicy, resumes: int) -> float:
    """Return the seconds since the first step's begin at which a canary without a verdict is inconclusive."""
    extensions = policy.extensions if policy.inconclusive == "extend" else 0
    return policy.max_seconds * (1 + extensions + resumes)


def golden_due(policy: CanaryPolicy, step_elapsed: float, latest: Golden | None) -> bool:
    """Return whether the golden prompts are to be asked (again): once a step's time is over."""
    since = latest.step_elapsed if latest else 0.0
    return step_elapsed - since >= policy.step_seconds


def figures(policy: CanaryPolicy, evidence: Evidence) -> dict[str, float]:
    """Return the numbers that a decision rests on, by name."""
    canary, champion = (_total(evidence, arm) for arm in ("canary", "champion"))
    current = _current_canary(evidence)
    result: dict[str, float] = {
        "canary_requests": canary.finished,
        "champion_requests": champion.finished,
        "canary_failed": canary.failed,
        "champion_failed": champion.failed,
        "canary_slow": canary.slow,
        "champion_slow": champion.slow,
        "canary_sampled": canary.sampled,
        "canary_bad": canary.bad,
        "champion_sampled": champion.sampled,
        "champion_bad": champion.bad,
        "seconds": round(evidence.elapsed, 3),
    }
    for comparison in COMPARISONS:
        result[f"{comparison.name}_log10_e"] = _log_e(comparison, evidence) / math.log(10)
    result["failed_bound"] = upper_bound(current.failed, current.finished, policy.promotion_alpha)
    result["bad_bound"] = upper_bound(current.bad, current.sampled, policy.promotion_alpha)
    if evidence.golden:
        result["golden_same"] = evidence.golden.same / evidence.golden.asked
    return result


def _harm(policy: CanaryPolicy, evidence: Evidence) -> tuple[str, ...]:
    reasons = []
    threshold = len(COMPARISONS) / policy.alpha
    for comparison in COMPARISONS:
        log_e = _log_e(comparison, evidence)
        if log_e >= math.log(threshold):
            reasons.append(_failure_message(comparison, evidence, log_e, threshold))
    golden = evidence.golden
    if golden and golden.same < policy.quality.min_golden * golden.asked:
        reasons.append(
            f"golden prompts: {golden.same} of {golden.asked} gave the text that the engine gave when it was built, "
            f"at least {policy.quality.min_golden:.0%} have to"
        )
    if evidence.missed >= MISSED_IN_A_ROW:
        reasons.append(
            f"the canary left {evidence.missed} requests of the controller in a row unanswered, "
            "while the champion answered"
        )
    return tuple(reasons)


def _log_e(comparison: _Comparison, evidence: Evidence) -> float:
    events = comparison.events
    return log_excess((part.weight, events(part.canary), events(part.champion)) for part in evidence.generations)


def _failure_message(comparison: _Comparison, evidence: Evidence, log_e: float, threshold: float) -> str:
    def count(arm: Literal["canary", "champion"]) -> str:
        total = _total(evidence, arm)
        return f"{comparison.events(total)} of the {arm}'s {comparison.among(total)}"

    return (
        f"{comparison.name}: {count('canary')} and {count('champion')} {comparison.words} "
        f"(E = 10^{log_e / math.log(10):.1f}, the limit is {threshold:.0f})"
    )


def _missing_for_next_step(policy: CanaryPolicy, evidence: Evidence) -> tuple[str, ...]:
    return _missing_in_step(policy, evidence, max(1, math.ceil(policy.min_requests * STEP_SHARE)))


def _missing_for_promotion(policy: CanaryPolicy, evidence: Evidence) -> tuple[str, ...]:
    missing = list(_missing_in_step(policy, evidence, math.ceil(policy.min_requests / 2)))
    canary = _current_canary(evidence)
    if canary.finished < policy.min_requests:
        missing.append(f"{canary.finished} of {policy.min_requests} requests answered by the canary")
    enough = -math.log(policy.promotion_alpha)
    for bad, total, words in (
        (canary.failed, canary.finished, "requests failed"),
        (canary.bad, canary.sampled, "answers read were bad"),
    ):
        if log_evidence_below(policy.max_bad_rate, bad, total) < enough:
            missing.append(
                f"{bad} of the canary's {total} {words}: that does not yet show a rate below {policy.max_bad_rate:.4g}"
            )
    return (*missing, *_missing_latency(policy, evidence))


def _missing_latency(policy: CanaryPolicy, evidence: Evidence) -> tuple[str, ...]:
    if not evidence.latency_judged:
        if evidence.baseline_answers < policy.baseline_requests:
            counted = f"{evidence.baseline_answers} of {policy.baseline_requests} answers of the champion"
            return (f"latency is not judged yet: {counted}",)
        return ("latency is not judged: the champion's own times are beyond what the router can count",)
    least = math.ceil(policy.min_requests / 2)
    judged = sum(part.canary.finished for part in evidence.generations if part.current and part.latency_judged)
    return () if judged >= least else (f"latency is judged of {judged} of {least} requests answered by the canary",)


def _missing_in_step(policy: CanaryPolicy, evidence: Evidence, requests: int) -> tuple[str, ...]:
    missing = []
    if not evidence.counted:
        missing.append("the router's counts could not be read")
    if evidence.missed:
        missing.append("the canary did not answer the controller's own request")
    if evidence.step_elapsed < policy.step_seconds:
        missing.append(f"{evidence.step_elapsed:.0f} of {policy.step_seconds:.0f} s at this step")
    elif evidence.golden is None:
        missing.append("the golden prompts have not been asked at this step")
    finished = sum(part.canary.finished for part in evidence.generations if part.current and part.step == evidence.step)
    if finished < requests:
        missing.append(f"{finished} of {requests} requests answered by the canary within this step")
    return tuple(missing)


def _current_canary(evidence: Evidence) -> Arm:
    return _sum(part.canary for part in evidence.generations if part.current)


def _total(evidence: Evidence, arm: Literal["canary", "champion"]) -> Arm:
    return _sum(getattr(part, arm) for part in evidence.generations)


def _sum(arms: Iterable[Arm]) -> Arm:
    found = tuple(arms)
    return Arm.model_construct(**{field: sum(getattr(arm, field) for arm in found) for field in Arm.model_fields})
