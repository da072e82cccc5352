"""Take a data set through all steps: the rows that are kept, and those removed, with the reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
from nemo_curator.tasks import DocumentBatch

from include.errors import DataError
from include.specs.curate import Config
from jobs.curate.parsing import RemovedRow, Row
from jobs.curate.pipeline import AddId, as_batch, cleaning, first_empty_message, redaction, run_stages, run_step, steps

HeldOut = list[dict[str, Any]]
"""Rows of {"id", "messages", "label", "request", "text", "answer"}."""


@dataclass
class Curated:
    """The outcome of curation, before it is split and written.

    Attributes:
        kept: columns id, messages, label, request, pii.
        stages: (name, rows that it left, {reason: rows removed}) of each stage, in order.
    """

    kept: pd.DataFrame
    held_out: HeldOut
    read: int
    removed: list[RemovedRow] = field(default_factory=list)
    stages: list[tuple[str, int, dict[str, int]]] = field(default_factory=list)


def clean_held_out(rows: Sequence[Row], config: Config) -> HeldOut:
    """Return the held-out rows, normalised and redacted as all rows are, without duplicates.

    No filter applies: the held-out set defines what the evaluation asks.

    Raises:
        DataError: a row whose request or answer holds no text.
    """
    if not rows:
        return []
    stages = [*cleaning(), *redaction(config.pii), AddId()]
    frame = run_stages(stages, as_batch(_frame(rows))).to_pandas().drop_duplicates("id")
    for row in frame.itertuples():
        if any(first_empty_message(row.messages, role) is not None for role in ("user", "assistant")):
            raise DataError(f"held-out set: {row.place}: request or answer holds no text; correct or remove the row")
    return frame[["id", "messages", "label", "request", "text", "answer"]].to_dict("records")


def curate(
    parsed: Sequence[Row | RemovedRow], config: Config, held_out: HeldOut, *, on_step: Callable[..., None]
) -> Curated:
    """Take rows through all steps.

    Args:
        parsed: what `jobs.curate.parsing.read_rows` found on each line.
        on_step: called with a step's name and its figures, for progress.

    Raises:
        DataError: no row is left.
    """
    rows = [row for row in parsed if isinstance(row, Row)]
    curated = Curated(pd.DataFrame(), held_out, read=len(parsed))
    _record(curated, "read", len(rows), [row for row in parsed if isinstance(row, RemovedRow)], on_step)
    batch = as_batch(_frame(rows))
    plan = list(steps(config, held_out))
    for number, step in enumerate(plan, start=1):
        batch, dropped = run_step(step, batch)
        removed = [RemovedRow(rows[drop.row].line, drop.reason, drop.detail) for drop in dropped]
        _record(curated, step.name, batch.num_items, removed, on_step, progress=number / len(plan))
    if not batch.num_items:
        raise DataError(_nothing_left(curated))
    curated.kept = _with_pii(batch)
    return curated


def _frame(rows: Sequence[Row]) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "place": pd.Series([row.line.place for row in rows], dtype="object"),
            "messages": pd.Series([row.messages for row in rows], dtype="object"),
            "label": pd.Series([row.label for row in rows], dtype="object"),
        }
    )


def _record(
    curated: Curated, stage: str, rows: int, removed: list[RemovedRow], on_step: Callable[..., None], **fields: float
) -> None:
    curated.removed.extend(removed)
    curated.stages.append((stage, rows, dict(sorted(Counter(row.reason for row in removed).items()))))
    on_step(stage, **fields, rows=rows, removed=len(removed))


def _with_pii(batch: DocumentBatch) -> pd.DataFrame:
    frame = batch.to_pandas()
    return frame if "pii" in frame else frame.assign(pii=None)


def _nothing_left(curated: Curated) -> str:
    counts = Counter(row.reason for row in curated.removed)
    first = {row.reason: row for row in reversed(curated.removed)}
    reasons = "; ".join(
        f"{reason} {count} (first: {first[reason].line.place}: {first[reason].detail})"
        for reason, count in counts.most_common(4)
    )
    return (
        f"none of the {curated.read} rows is left after curation: {reasons}; correct the data, or curate.mapping and "
        "curate.filters"
    )
