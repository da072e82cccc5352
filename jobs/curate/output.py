"""The files of a curated data set."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from include.specs.curate import Config
from jobs.curate import removed
from jobs.curate.curation import Curated
from jobs.curate.splits import assign


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
    gone = sorted(curated.removed, key=lambda row: (row.line.file, row.line.number))
    _write_lines(folder / "removed.jsonl", (removed.record(row, config.pii) for row in gone))
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
