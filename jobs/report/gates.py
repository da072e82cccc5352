"""The gates, judged again from the artifacts that they judged, each limit with its number."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from include.gates import Verdict
from include.gates.data_quality import data_quality
from include.gates.evaluation import EvaluationGate, judge_evaluation
from jobs.report.artifacts import Artifacts
from jobs.report.private import Mask
from jobs.report.record import Gate, Limit

_TOLERANCE = 1e-6

DATA_QUALITY, EVALUATION = "data-quality", "evaluation"


def judge_again(artifacts: Artifacts, limits: EvaluationGate, mask: Mask) -> tuple[Gate, ...]:
    """Those gates whose artifact there is."""
    gates = []
    result = artifacts.json("checked", "result.json")
    if result is not None:
        gates.append(_gate(DATA_QUALITY, data_quality(result), _expectations(result, mask), mask))
    results = artifacts.json("evaluation", "results.json")
    scores = artifacts.lines("evaluation", "scores.jsonl")
    if results is not None and scores is not None:
        verdict = judge_evaluation(limits, results, scores)
        gates.append(_gate(EVALUATION, verdict, _limits(limits, verdict.figures), mask))
    return tuple(gates)


def _gate(name: str, verdict: Verdict, limits: tuple[Limit, ...], mask: Mask) -> Gate:
    reasons = tuple(mask.text(reason, 600) for reason in verdict.reasons)
    return Gate(name=name, outcome=verdict.outcome, reasons=reasons, limits=limits)


def _expectations(result: Mapping[str, Any], mask: Mask) -> tuple[Limit, ...]:
    return tuple(
        Limit(
            name=expectation["name"],
            observed=_observed(expectation["observed"], expectation["limit"]),
            limit=expectation["limit"],
            kept=expectation["success"] is True,
            note=mask.text(expectation["message"].partition(f"limit {expectation['limit']}")[2].strip()),
        )
        for expectation in result["expectations"]
    )


def _observed(value: float | None, limit: str) -> str:
    if value is None:
        return "nothing"
    if limit.endswith("%"):
        return f"{value:.2%}"
    return f"{value:,.0f}" if value == int(value) and value > 1 else f"{value:.4g}"


def _limits(gate: EvaluationGate, figures: Mapping[str, float]) -> tuple[Limit, ...]:
    rows = [
        ("exact match, tuned", "tuned_exact_match", gate.min_exact_match, True, ""),
        ("gain over the base's best", "gain", gate.min_gain, True, ""),
        ("held-out loss, tuned", "tuned_heldout_loss", gate.max_heldout_loss, False, "nats an answer token"),
        ("held-out rows", "rows", gate.min_rows, True, ""),
        (
            "not worse than the champion",
            "champion_difference_lower",
            -gate.non_inferiority_margin,
            True,
            f"lower end of the {gate.confidence:.0%} interval of the paired difference",
        ),
    ]
    return tuple(
        Limit(
            name=name,
            observed=_number(figures[key]),
            limit=f"at {'least' if at_least else 'most'} {_number(limit)}",
            # The gain is a difference of two decimal fractions, and the gate judges it with the same tolerance.
            kept=figures[key] >= limit - (_TOLERANCE if key == "gain" else 0) if at_least else figures[key] <= limit,
            note=note,
        )
        for name, key, limit, at_least, note in rows
        if key in figures
    )


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 10 else f"{value:.4f}".rstrip("0").rstrip(".").replace("-", "−")
