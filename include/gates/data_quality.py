"""The data-quality gate: may this data set be trained on?"""

from __future__ import annotations

from typing import Any

from include.gates import Gate, Limit, Verdict, is_number
from include.model import Model

_REMEDY = "run the DAG again with refresh: [check]"


class Limits(Model):
    """None: the limits are in the suite of expectations that the data was checked against."""


def data_quality(result: Any) -> Verdict:
    """Return the verdict over a check's `result.json` (as in `include.specs.check.Spec`).

    Passes only if at least one row and one expectation were checked, every expectation succeeded, and each
    observed something: what is missing, empty or NaN is a reason to fail. There is no inconclusive outcome: a data
    set with too few rows is one that fails.

    Returns:
        A verdict with a reason for each expectation that was not met, naming observed value and limit; its figures
        are `rows`, and the observed value of each expectation by name.
    """
    if not isinstance(result, dict):
        return Verdict("fail", (f"the check's result is not an object: {_REMEDY}",))
    reasons: list[str] = []
    limits: list[Limit] = []
    figures: dict[str, float] = {}
    rows, expectations = result.get("rows"), result.get("expectations")
    if is_number(rows) and rows > 0:
        figures["rows"] = float(rows)
    else:
        reasons.append(f"rows: {rows}, limit at least 1: nothing was checked")
    if not isinstance(expectations, list) or not expectations:
        reasons.append("expectations: none, limit at least 1: the suite is empty")
        expectations = []
    for number, expectation in enumerate(expectations):
        if not isinstance(expectation, dict):
            reasons.append(f"expectation {number}: not an object: {_REMEDY}")
            continue
        name = str(expectation.get("name") or f"expectation {number}")
        observed, limit = expectation.get("observed"), expectation.get("limit") or "unknown"
        if is_number(observed):
            figures[name] = float(observed)
        limits.append(_limit(name, expectation))
        if expectation.get("success") is not True:
            reasons.append(str(expectation.get("message") or f"{name}: {observed}, limit {limit}"))
        elif not is_number(observed):
            reasons.append(f"{name}: observed {observed}, limit {limit}: nothing was measured, so it does not count")
    if not reasons and result.get("success") is not True:
        reasons.append(f"the check itself did not succeed, though every expectation did: {_REMEDY}")
    return Verdict("fail" if reasons else "pass", tuple(reasons), figures, tuple(limits))


def _limit(name: str, expectation: dict[str, Any]) -> Limit:
    limit = str(expectation.get("limit"))
    return Limit(
        name=name,
        observed=_observed(expectation.get("observed"), limit),
        limit=limit,
        kept=expectation.get("success") is True,
        note=str(expectation.get("message") or "").partition(f"limit {limit}")[2].strip(),
    )


def _observed(value: Any, limit: str) -> str:
    if not is_number(value):
        return "nothing"
    if limit.endswith("%"):
        return f"{value:.2%}"
    return f"{value:,.0f}" if value == int(value) and value > 1 else f"{value:.4g}"


GATE = Gate(
    job="check",
    limits=Limits,
    files=("result.json",),
    judge=lambda _limits, result: data_quality(result),
    remedy="Correct the data set and announce it again; removed.jsonl of the curated artifact names every row that was "
    "removed, and why, and {artifact} holds the whole report.",
)
