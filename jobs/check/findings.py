"""The outcome of an expectation as a plain record that a gate and a person can read."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from include.specs.check import Expectation

SHOWN_EXAMPLES = 3


@dataclass(frozen=True)
class Finding:
    """One expectation's outcome.

    Attributes:
        observed: share of rows that miss the expectation, or the observed figure; None where there is none.
        limit: what is allowed, in words.
        message: one line with both, and the first rows that miss it.
    """

    name: str
    success: bool
    observed: float | None
    limit: str
    message: str


def finding(expectation: Expectation, outcome: dict[str, Any]) -> Finding:
    """Return the finding in Great Expectations' own result (its JSON form, version 1.24).

    Missing values, or no rows at all, are a failure: Great Expectations leaves nulls out of most expectations, so that
    a column of nulls would pass them.
    """
    result = outcome.get("result") or {}
    of_rows = "unexpected_count" in result
    observed, success, shown = _of_rows(result) if of_rows else _of_table(result)
    limit = _share_allowed(outcome) if of_rows else _bounds(outcome)
    success = success and bool(outcome["success"])
    message = f"{expectation.meta.name}: {shown}, limit {limit} ({expectation.description})"
    if not success:
        message += _examples(result) + _exception(outcome)
    return Finding(expectation.meta.name, success, observed, limit, message)


def _of_rows(result: dict[str, Any]) -> tuple[float | None, bool, str]:
    rows, missing = result["element_count"], result.get("missing_count", 0)
    if not rows:
        return None, False, "no rows"
    missed = result["unexpected_count"] + missing
    shown = f"{missed} of {rows} rows ({missed / rows:.2%})"
    return missed / rows, not missing, shown + (f", {missing} of them without a value" if missing else "")


def _of_table(result: dict[str, Any]) -> tuple[float | None, bool, str]:
    value = result.get("observed_value")
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None, False, "nothing observed"
    return float(value), True, f"{value:.4g}"


def _share_allowed(outcome: dict[str, Any]) -> str:
    return f"at most {1 - outcome['expectation_config']['kwargs'].get('mostly', 1):.2%}"


def _bounds(outcome: dict[str, Any]) -> str:
    kwargs = outcome["expectation_config"]["kwargs"]
    bounds = [
        f"{word} {kwargs[key]:.4g}"
        for key, word in (("min_value", "at least"), ("max_value", "at most"))
        if kwargs.get(key) is not None
    ]
    return " and ".join(bounds) or "as described"


def _examples(result: dict[str, Any]) -> str:
    rows = (result.get("partial_unexpected_index_list") or [])[:SHOWN_EXAMPLES]
    return "; first: " + ", ".join(map(_example, rows)) if rows else ""


def _example(row: dict[str, Any]) -> str:
    values = [str(value)[:40] for key, value in row.items() if key != "id" and not isinstance(value, bool)]
    return f"row {row['id']}" + (f" ({', '.join(values)})" if values else "")


def _exception(outcome: dict[str, Any]) -> str:
    info = outcome.get("exception_info") or {}
    messages = [entry.get("exception_message") for entry in (info, *info.values()) if isinstance(entry, dict)]
    found = next((message for message in messages if message), None)
    return f"; Great Expectations: {found.splitlines()[0][:200]}" if found else ""
