"""The tables of a suite: a line for each row, for each held-out row, and for the whole data set."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from transformers import PreTrainedTokenizerBase

from include.errors import DataError
from include.specs.check import Evaluation
from jobs.check.language import languages
from jobs.common.base_model import positions
from jobs.common.causal_lm import Conversation
from jobs.common.chat import encode, encode_prompt
from jobs.common.conversations import answer, comparison_key, request
from jobs.common.few_shot import choose_examples
from jobs.common.heldout import Asked, ask_rows

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


def conversations(rows: list[Row], tokenizer: PreTrainedTokenizerBase) -> list[Conversation]:
    """Encode rows as token ids and answer mask. Raises DataError where the template cannot render one."""
    found = []
    for row in rows:
        try:
            found.append(Conversation(*encode(tokenizer, row["messages"])))
        except DataError as error:
            raise DataError(f"row {row['id']}: {error}") from None
    return found


def rows_table(rows: list[Row], held_out: list[Row], encoded: list[Conversation]) -> pd.DataFrame:
    """Return the table with one line for each row that fine-tuning reads.

    Args:
        encoded: `rows` as `conversations` gives them.

    Returns:
        Columns `id`, `prompt` and `completion` (text), `label` (text or null), `language` (ISO 639-1 of the prompt,
        or "und"), `tokens` (of the whole conversation as the chat template renders it), `trained_tokens` (those of
        them that are trained on), and the flags `duplicate` (an earlier row has the same prompt and completion),
        `conflicting` (another row answers the same prompt differently) and `held_out` (a held-out row has the same
        prompt). Case, blanks and punctuation around a text make no difference to the flags.
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
            "tokens": [len(row.ids) for row in encoded],
            "trained_tokens": [sum(row.mask) for row in encoded],
            "duplicate": pd.Series(list(zip(keys, values, strict=True))).duplicated(),
            "conflicting": [len(answers[key]) > 1 for key in keys],
            "held_out": [key in kept_back for key in keys],
        }
    )


def ask_heldout(
    rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, model: dict[str, Any], evaluation: Evaluation
) -> list[Asked]:
    """Return the held-out rows that the evaluation will ask, in file order, as it asks the tuned model.

    Raises:
        DataError: the template cannot render a row, or renders its answer to no token.
    """
    return ask_rows(
        tokenizer,
        rows[: evaluation.rows],
        max_tokens=evaluation.max_tokens,
        max_new_tokens=evaluation.max_new_tokens,
        positions=positions(model),
    )


def heldout_table(
    rows: Sequence[Row],
    asked: Sequence[Asked],
    training: Sequence[Row],
    tokenizer: PreTrainedTokenizerBase,
    model: dict[str, Any],
    evaluation: Evaluation,
) -> pd.DataFrame:
    """Return the table with one line for each held-out row that the evaluation will ask.

    Args:
        asked: of `ask_heldout`.

    Returns:
        Columns `id`, `too_long` and `too_long_few_shot`: what of the row is too long for the right answer to be given
        without examples, and after the least of them, such as "answer of 140 tokens"; empty where nothing is.
    """
    rows = rows[: len(asked)]
    return pd.DataFrame(
        {
            "id": [row["id"] for row in rows],
            "too_long": [one.too_long for one in asked],
            "too_long_few_shot": _after_examples(evaluation, rows, asked, training, tokenizer, positions(model)),
        }
    )


def _after_examples(
    evaluation: Evaluation,
    rows: Sequence[Row],
    asked: Sequence[Asked],
    training: Sequence[Row],
    tokenizer: PreTrainedTokenizerBase,
    reach: int,
) -> list[str]:
    if not rows or not training:
        return [one.too_long for one in asked]
    short = [row for row, one in zip(rows, asked, strict=True) if not one.too_long] or rows
    examples = choose_examples(
        tokenizer,
        training,
        short,
        count=evaluation.few_shot,
        max_prompt_tokens=reach - evaluation.max_new_tokens,
        seed=evaluation.seed,
    )
    # The same for every row, save for merges at the boundary.
    added = len(encode_prompt(tokenizer, [*examples, *rows[0]["messages"]])) - len(asked[0].prompt)
    return [
        one.too_long
        or (f"prompt of {len(one.prompt) + added} tokens" if len(one.prompt) + added + one.answer > reach else "")
        for one in asked
    ]


def figures(
    table: pd.DataFrame, funnel: dict[str, Any], held_out: list[Conversation], max_tokens: int
) -> dict[str, float]:
    """Return the figures of the data set as a whole.

    Args:
        table: of the rows that fine-tuning reads (`rows_table`).

    Returns:
        `rows_train`, `rows_validation`, `rows_heldout`; `share_lost`, of the rows read, and of that
        `share_<reason>` for the reasons of `LOST`; `labels`, their number, and `label_balance`, the rarest label's
        rows over the most frequent one's (both 0 where no row has a label); `heldout_too_long`, held-out rows over
        `max_tokens`.

    Raises:
        DataError: the funnel says that no row was read, or has a reason that is not in `LOST`.
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
        "heldout_too_long": float(sum(len(row.ids) > max_tokens for row in held_out)),
    }
