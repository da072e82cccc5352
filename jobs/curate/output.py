"""The files of a curated data set."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from include.specs.curate import Config, Pii
from jobs.common.pii import redact, redact_value
from jobs.curate.curation import Curated
from jobs.curate.parsing import RemovedRow
from jobs.curate.splits import assign

MAX_CHARACTERS = 2000
"""A longer row is shown as the start of its JSON text."""

_ESCAPED = re.compile(r"\\u([0-9a-fA-F]{4})")


def write(curated: Curated, folder: Path, config: Config) -> dict[str, Any]:
    """Write the splits, the removed rows and the funnel to `folder`.

    Returns:
        The funnel, as in `include.specs.curate.Spec`.
    """
    kept = curated.kept
    names = assign(
        kept["request"].tolist(),
        heldout=0.0 if curated.held_out else config.heldout_fraction,
        validation=config.validation_fraction,
        seed=config.seed,
    )
    splits: dict[str, list[dict[str, Any]]] = {"train": [], "validation": [], "heldout": []}
    for name, row in zip(names, kept[["id", "messages", "label"]].to_dict("records"), strict=True):
        splits[name].append(_canonical(row))
    splits["heldout"].extend(_canonical(row) for row in curated.held_out)
    for name, rows in splits.items():
        _write_lines(folder / f"{name}.jsonl", rows)
    removed = sorted(curated.removed, key=lambda row: (row.line.file, row.line.number))
    _write_lines(folder / "removed.jsonl", (removed_record(row, config.pii) for row in removed))
    funnel = {
        "read": curated.read,
        "kept": len(kept),
        "stages": [{"stage": stage, "rows": rows, "removed": reasons} for stage, rows, reasons in curated.stages],
        "removed": dict(sorted(Counter(row.reason for row in curated.removed).items())),
        "redacted": _redacted(kept["pii"]) if config.pii.action == "redact" else {},
        "splits": {name: len(rows) for name, rows in splits.items()},
    }
    (folder / "funnel.json").write_text(json.dumps(funnel, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return funnel


def removed_record(removed: RemovedRow, pii: Pii) -> dict[str, Any]:
    """Return {"file", "line", "reason", "detail", "row"} of a removed row, shortened and without personal data."""
    line = removed.line
    kinds = () if pii.action == "keep" else pii.kinds
    if line.raw is not None:
        row: Any = redact(_ESCAPED.sub(lambda match: chr(int(match[1], 16)), line.raw), kinds)[0]
    else:
        row = redact_value(line.value, kinds)
    shown = row if isinstance(row, str) else json.dumps(row, ensure_ascii=False)
    if len(shown) > MAX_CHARACTERS:
        row = shown[:MAX_CHARACTERS] + "…"
    detail = redact(removed.detail, kinds)[0]
    return {"file": line.file, "line": line.number, "reason": removed.reason, "detail": detail, "row": row}


def _canonical(row: dict[str, Any]) -> dict[str, Any]:
    label = {"label": row["label"]} if isinstance(row["label"], str) else {}
    return {"id": row["id"], "messages": row["messages"], **label}


def _redacted(kinds: Iterable[Any]) -> dict[str, int]:
    return dict(sorted(Counter(kind for found in kinds if isinstance(found, str) for kind in found.split()).items()))


def _write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    # A lone surrogate, which JSON can carry and UTF-8 cannot, is written as the escape that it came as.
    with path.open("w", encoding="utf-8", errors="backslashreplace", newline="\n") as stream:
        for row in rows:
            stream.write(json.dumps(row, ensure_ascii=False) + "\n")
