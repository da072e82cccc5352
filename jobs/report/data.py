"""The curation of the data set: its funnel, and examples of removed rows."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from jobs.report.artifacts import Artifacts
from jobs.report.masking import Mask
from jobs.report.record import Data, Example, FunnelStage, Removal

_EXAMPLES = 3
"""Rows shown of each reason: the first, the middle and the last of them."""


def describe_data(artifacts: Artifacts, mask: Mask) -> Data | None:
    """Return the funnel, and examples of what was removed; None where nothing was curated."""
    funnel = artifacts.json("curated", "funnel.json")
    removed = artifacts.lines("curated", "removed.jsonl")
    if funnel is None or removed is None:
        return None
    by_reason: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in removed:
        by_reason[row["reason"]].append(row)
    return Data(
        read=funnel["read"],
        kept=funnel["kept"],
        stages=tuple(
            FunnelStage(stage=stage["stage"], rows=stage["rows"], removed=sum(stage["removed"].values()))
            for stage in funnel["stages"]
        ),
        removals=tuple(
            Removal(reason=reason, rows=len(rows), examples=tuple(_example(row, mask) for row in _some(rows)))
            for reason, rows in sorted(by_reason.items(), key=lambda item: (-len(item[1]), item[0]))
        ),
        redacted=funnel["redacted"],
        splits=funnel["splits"],
    )


def _some(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    places = dict.fromkeys((0, len(rows) // 2, len(rows) - 1))
    return [rows[place] for place in places][:_EXAMPLES]


def _example(row: dict[str, Any], mask: Mask) -> Example:
    return Example(
        place=f"{row['file']}, line {row['line']}", detail=mask.text(row["detail"], 160), text=mask.value(row["row"])
    )
