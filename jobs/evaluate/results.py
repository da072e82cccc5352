"""The files of an evaluation: the scores and answers of all models."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jobs.common.heldout import Row
from jobs.evaluate.measure import Scored


def means(scores: Sequence[Scored]) -> dict[str, float | int | None]:
    """Return one model's figures; the loss is None where any row's is not a finite number, or no row has one."""
    read = [score for score in scores if score.tokens]
    sums = [score.loss * score.tokens for score in read if score.loss is not None]
    total = math.fsum(sums) if read and len(sums) == len(read) else None
    return {
        "exact_match": sum(score.exact_match for score in scores) / len(scores),
        "rouge_l": math.fsum(score.rouge_l for score in scores) / len(scores),
        "heldout_loss": None if total is None else total / sum(score.tokens for score in read),
        "empty_answers": sum(not score.text for score in scores),
        "unfinished_answers": sum(not score.finished for score in scores),
        "rows_too_long": sum(score.too_long for score in scores),
    }


def by_label(rows: Sequence[Row], models: Mapping[str, Sequence[Scored]]) -> dict[str, Any]:
    """Return the exact match of every model by label, for rows that have one."""
    members: dict[str, list[int]] = defaultdict(list)
    for number, row in enumerate(rows):
        if row.get("label") is not None:
            members[str(row["label"])].append(number)
    return {
        label: {
            "rows": len(numbers),
            "exact_match": {
                name: sum(scores[number].exact_match for number in numbers) / len(numbers)
                for name, scores in models.items()
            },
        }
        for label, numbers in sorted(members.items())
    }


def write_results(
    folder: Path, rows: Sequence[Row], models: Mapping[str, Sequence[Scored]], few_shot: int
) -> dict[str, Any]:
    """Write `results.json`, `scores.jsonl` and `answers.jsonl`, and return the results."""
    results = {
        "rows": len(rows),
        "few_shot": few_shot,
        "models": {name: means(scores) for name, scores in models.items()},
        "labels": by_label(rows, models),
    }
    (folder / "results.json").write_text(_json(results, indent=1) + "\n", encoding="utf-8")
    with (
        (folder / "scores.jsonl").open("w", encoding="utf-8") as scores_file,
        (folder / "answers.jsonl").open("w", encoding="utf-8") as answers_file,
    ):
        for number, row in enumerate(rows):
            own = {name: scores[number] for name, scores in models.items()}
            scores_file.write(
                _json({"id": row["id"], "scores": {name: _figures(one) for name, one in own.items()}}) + "\n"
            )
            answer = {
                "id": row["id"],
                **({"label": row["label"]} if row.get("label") is not None else {}),
                "prompt": row["messages"][-2]["content"],
                "reference": row["messages"][-1]["content"],
                "answers": {name: one.text for name, one in own.items()},
            }
            answers_file.write(_json(answer) + "\n")
    return results


def _figures(score: Scored) -> dict[str, float | int | None]:
    return {
        "exact_match": score.exact_match,
        "rouge_l": score.rouge_l,
        "loss": score.loss,
        "tokens": score.tokens,
        "too_long": int(score.too_long),
    }


def _json(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, indent=indent)
