"""The two tables of a suite: one line for each row, and one line for the whole data set."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pandas as pd
from transformers import PreTrainedTokenizerBase

from include.errors import DataError
from jobs.check.language import languages
from jobs.common.chat import encode
from jobs.common.conversations import answer, comparison_key, request

LOST = {
    "unreadable": ("broken_json", "not_an_object", "missing_column", "wrong_type", "bad_messages"),
    "low_quality": (
        "empty_request",
        "empty_answer",
        "word_count",
        "word_length",
        "symbols",
        "non_alpha_numeric",
        "repeated_lines",
    ),
    "pii": ("pii",),
    "duplicates": ("exact_duplicate", "near_duplicate"),
    "held_out": ("held_out",),
}
"""Curation's reasons, grouped by what they say about the data set."""

Row = dict[str, Any]
"""{"id", "messages", "label"?}, as curation writes it."""


def read_rows(path: Path) -> list[Row]:
    """Return the rows of one of curation's files."""
    with path.open(encoding="utf-8") as stream:
        return [json.loads(line) for line in stream]


def rows_table(rows: list[Row], held_out: list[Row], tokenizer: PreTrainedTokenizerBase) -> pd.DataFrame:
    """Return the table with one line for each row that fine-tuning reads.

    Returns:
        Columns `id`, `prompt` and `completion` (text), `label` (text or null), `language` (ISO 639-1 of the prompt,
        or "und"), `tokens` (of the whole conversation as the chat template renders it), and the flags `duplicate`
        (an earlier row has the same prompt and completion), `conflicting` (another row answers the same prompt
        differently) and `held_out` (a held-out row has the same prompt). Case, blanks and punctuation around a text
        make no difference to the flags.
    """
    prompts = [request(row["messages"]) for row in rows]
    completions = [answer(row["messages"]) for row in rows]
    keys = [comparison_key(prompt) for prompt in prompts]
    values = [comparison_key(completion) for completion in completions]
    answers: dict[str, set[str]] = defaultdict(set)
    for key, value in zip(keys, values, strict=True):
        answers[key].add(value)
    kept_back = {comparison_key(request(row["messages"])) for row in held_out}
    return pd.DataFrame(
        {
            "id": [row["id"] for row in rows],
            "prompt": prompts,
            "completion": completions,
            "label": pd.Series([row.get("label") for row in rows], dtype="object"),
            "language": languages(prompts),
            "tokens": _lengths(rows, tokenizer),
            "duplicate": pd.Series(list(zip(keys, values, strict=True))).duplicated(),
            "conflicting": [len(answers[key]) > 1 for key in keys],
            "held_out": [key in kept_back for key in keys],
        }
    )


def figures(
    table: pd.DataFrame,
    funnel: dict[str, Any],
    held_out: list[Row],
    tokenizer: PreTrainedTokenizerBase,
    max_tokens: int,
) -> dict[str, float]:
    """Return the figures of the data set as a whole.

    Returns:
        `rows_train`, `rows_validation`, `rows_heldout`; `share_lost`, of the rows read, and of that
        `share_<reason>` for the reasons of `LOST`; `labels`, their number, and `label_balance`, the rarest label's
        rows over the most frequent one's (both 0 where no row has a label); `heldout_too_long`, held-out rows over
        `max_tokens`.

    Raises:
        DataError: the funnel says that no row was read, or has a reason that is not in `LOST`; or the template cannot
            render a row.
    """
    read, removed = funnel["read"], funnel["removed"]
    known = {reason for reasons in LOST.values() for reason in reasons}
    if not read or removed.keys() - known:
        raise DataError(
            f"funnel.json of the curated data set was written by another version of curation (read {read}, reasons "
            f"{', '.join(sorted(removed))}): run the DAG again with refresh: [curate]"
        )
    labels = Counter(table["label"].dropna())
    return {
        **{f"rows_{split}": float(rows) for split, rows in funnel["splits"].items()},
        "share_lost": (read - funnel["kept"]) / read,
        **{
            f"share_{group}": sum(removed.get(reason, 0) for reason in reasons) / read
            for group, reasons in LOST.items()
        },
        "labels": float(len(labels)),
        "label_balance": min(labels.values()) / max(labels.values()) if labels else 0.0,
        "heldout_too_long": float(sum(length > max_tokens for length in _lengths(held_out, tokenizer))),
    }


def _lengths(rows: list[Row], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    lengths = []
    for row in rows:
        try:
            lengths.append(len(encode(tokenizer, row["messages"])[0]))
        except DataError as error:
            raise DataError(f"row {row['id']}: {error}") from None
    return lengths
