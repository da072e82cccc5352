"""The golden prompts: what a server of the engine is asked again, and the answers that it has to give."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from jobs.common.engine_runtime.text import Text
from jobs.common.generation import Generated, cut_off
from jobs.common.scoring import exact_match
from jobs.engine.parity import Answered
from jobs.engine.reference import Reference


def pair_answers(
    reference: Reference, answers: Sequence[Generated], rooms: Sequence[int], text: Text
) -> list[Answered]:
    """Return each row's answers by the merged model and by the engine, the engine's cut where the evaluation cut.

    Args:
        rooms: for each row, the new tokens that the evaluation left room for.
    """
    pairs = []
    asked = zip(reference.rows, reference.texts, reference.right, answers, rooms, strict=True)
    for row, expected, was_right, answer, room in asked:
        same = cut_off(answer, room)
        found = text.decode(same.ids).strip()
        right = same.finished and bool(exact_match(found, row["messages"][-1]["content"]))
        pairs.append(Answered(expected, found, was_right, right))
    return pairs


def write_golden(
    path: Path,
    reference: Reference,
    pairs: Sequence[Answered],
    answers: Sequence[Generated],
    text: Text,
) -> None:
    """Write `golden.jsonl` (see `include.specs.engine.Spec`).

    Args:
        answers: the engine's, cut where a server cuts them.
    """
    with path.open("w", encoding="utf-8") as lines:
        for row, both, answer in zip(reference.rows, pairs, answers, strict=True):
            golden = {
                "id": row["id"],
                "messages": row["messages"][:-1],
                "reference": row["messages"][-1]["content"],
                "answer": text.decode(answer.ids).strip(),
                "exact_match": int(both.engine_right),
            }
            lines.write(json.dumps(golden, ensure_ascii=False) + "\n")
