"""The rollout and its analysis runs, from the evidence that the controller committed."""

from __future__ import annotations

import math
from collections.abc import Callable

from include.errors import DataError
from include.release.rollouts import CanaryPolicy, RolloutRequest, RolloutStatus
from jobs.report.artifacts import Artifacts
from jobs.report.record import AnalysisRun, Canary, Limit, Note
from jobs.serving.canary.analysis import runs
from jobs.serving.canary.analysis.judge import COMPARISONS, Arm, Evidence

BOUNDS = {"failed_bound": "failed requests", "bad_bound": "bad answers"}
"""Figure of an analysis run → what it bounds the share of."""

_LOG = "looks.jsonl"
"""The file of the evidence with the analysis runs, under the name that version 0.1 gave it."""

_FOR_PROMOTION = "asked for before a promotion only"


def describe_canary(artifacts: Artifacts) -> Canary | None:
    """Return the rollout; None where there was none."""
    request_json, status_json = artifacts.bytes("rollout", "request.json"), artifacts.bytes("rollout", "status.json")
    log = artifacts.bytes("rollout", _LOG)
    if request_json is None or status_json is None or log is None:
        return None
    request, status = RolloutRequest.model_validate_json(request_json), RolloutStatus.model_validate_json(status_json)
    policy = request.policy
    found, differing = _runs(artifacts, policy, log)
    threshold = len(COMPARISONS) / policy.alpha
    return Canary(
        outcome=str(status.outcome),
        reasons=status.reasons,
        drill=request.drill,
        champion=status.champion.release.version if status.champion else None,
        restarts=status.restarts,
        runs=found,
        notes=tuple(Note(time=note.time, state=note.state, message=note.message) for note in status.notes),
        limits=_limits(found, policy, threshold),
        e_limit=math.log10(threshold),
        rate_limit=policy.max_bad_rate,
        alpha=policy.alpha,
        promotion_alpha=policy.promotion_alpha,
        replayed=len(found),
        differing=differing,
    )


def _runs(artifacts: Artifacts, policy: CanaryPolicy, log: bytes) -> tuple[tuple[AnalysisRun, ...], int]:
    """Return the analysis runs, and how many come out otherwise when they are decided again."""
    if not runs.has_runs(log):
        return (), 0
    try:
        heading, found = runs.read(log, _LOG)
    except DataError as error:
        artifacts.missing["rollout"] = str(error)
        return (), 0
    differing = sum(again.difference is not None for again in runs.replay(heading, found))
    return tuple(_run(policy, run) for run in found), differing


def _run(policy: CanaryPolicy, run: runs.AnalysisRun) -> AnalysisRun:
    evidence, figures = run.evidence, run.figures

    def arms(key: str) -> tuple[int, int]:
        return int(figures[f"canary_{key}"]), int(figures[f"champion_{key}"])

    return AnalysisRun(
        seconds=evidence.elapsed,
        weight=_weight(policy, evidence),
        action=run.action,
        finished=arms("requests"),
        failed=arms("failed"),
        slow=arms("slow"),
        sampled=arms("sampled"),
        bad=arms("bad"),
        log10_e={comparison.name: figures[f"{comparison.name}_log10_e"] for comparison in COMPARISONS},
        bounds={name: figures[name] for name in BOUNDS},
    )


def _weight(policy: CanaryPolicy, evidence: Evidence) -> float:
    within = [part.weight for part in evidence.generations if part.step == evidence.step and part.current]
    return within[-1] if within else policy.steps[evidence.step]


def _limits(found: tuple[AnalysisRun, ...], policy: CanaryPolicy, threshold: float) -> tuple[Limit, ...]:
    if not found:
        return ()
    last = found[-1]
    harm = [
        Limit(
            name=f"{comparison.name}: evidence that the canary is worse",
            observed=_power(last.log10_e[comparison.name]),
            limit=f"below {threshold:g}",
            kept=last.log10_e[comparison.name] < math.log10(threshold),
            note=_counts(comparison.words, last, comparison.events, comparison.among),
        )
        for comparison in COMPARISONS
    ]
    proof = [
        Limit(
            name=f"share of {words}, upper bound",
            observed=f"{last.bounds[name]:.2%}",
            limit=f"at most {policy.max_bad_rate:.2%}",
            kept=last.bounds[name] <= policy.max_bad_rate,
            note=f"at a confidence of {1 - policy.promotion_alpha:.0%}, at any time; {_FOR_PROMOTION}",
        )
        for name, words in BOUNDS.items()
    ]
    answered = Limit(
        name="requests to the canary",
        observed=f"{last.finished[0]:,}",
        limit=f"at least {policy.min_requests:,}",
        kept=last.finished[0] >= policy.min_requests,
        note=_FOR_PROMOTION,
    )
    return (*harm, *proof, answered)


def _power(log10_e: float) -> str:
    if log10_e >= 6:
        return f"E = 10^{log10_e:.1f}"
    return f"E = {10**log10_e:,.0f}" if log10_e >= 2 else f"E = {10**log10_e:.3g}"


def _counts(words: str, run: AnalysisRun, events: Callable[[Arm], int], among: Callable[[Arm], int]) -> str:
    canary, champion = (
        Arm(
            finished=run.finished[arm],
            failed=run.failed[arm],
            slow=run.slow[arm],
            sampled=run.sampled[arm],
            bad=run.bad[arm],
        )
        for arm in (0, 1)
    )
    return (
        f"{events(canary):,} of the canary's {among(canary):,} and {events(champion):,} of the champion's "
        f"{among(champion):,} {words}"
    )
