"""Held-out rows of a curated data set, as text and as tokens."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from include.errors import DataError
from jobs.common.causal_lm import Conversation
from jobs.common.chat import encode

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Row = dict[str, Any]
"""{"id", "messages": [{"role", "content"}, …, {"role": "assistant", "content"}], "label"?}."""


def read_rows(path: Path, limit: int | None = None) -> list[Row]:
    """Return the first `limit` rows of a curated JSONL file.

    Raises:
        DataError: the file is missing or empty, a line is not such a row, or an id is there twice.
    """
    if not path.is_file():
        raise DataError(f"the curated data set holds no {path.name}: clear the task that curates it")
    rows: list[Row] = []
    seen: set[str] = set()
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if limit is not None and len(rows) == limit:
                break
            row = _parse(line, f"{path.name} line {number}")
            if row["id"] in seen:
                raise DataError(
                    f"{path.name} line {number}: row {row['id']} is there twice, which would count it twice: "
                    "remove the duplicate"
                )
            seen.add(row["id"])
            rows.append(row)
    if not rows:
        raise DataError(
            f"the curated data set's {path.name} is empty: give the recipe a held-out set, or raise the fractions "
            "that curation splits off"
        )
    return rows


def _parse(line: str, where: str) -> Row:
    try:
        row = json.loads(line)
        messages = row["messages"]
        sound = (
            isinstance(row["id"], str)
            and len(messages) >= 2
            and messages[-1]["role"] == "assistant"
            and all(isinstance(message["content"], str) for message in messages)
        )
    except (ValueError, KeyError, TypeError):
        sound = False
    if not sound:
        raise DataError(
            f'{where} is not {{"id", "messages": […, {{"role": "assistant", "content": text}}]}}: '
            "clear the task that curates the data set"
        )
    if not messages[-1]["content"].strip():
        raise DataError(
            f"{where} (row {row['id']}): the answer is blank, so an empty answer would be right: take it "
            "out of the data set"
        )
    return row


def encode_rows(tokenizer: PreTrainedTokenizerBase, rows: Iterable[Row], max_tokens: int) -> list[Conversation]:
    """Encode each row as token ids and answer mask.

    Raises:
        DataError: a row is longer than `max_tokens`, or its answer has no token.
    """
    conversations = []
    for row in rows:
        try:
            conversation = Conversation(*encode(tokenizer, row["messages"]))
        except DataError as error:
            raise DataError(f"held-out row {row['id']}: {error}") from None
        if len(conversation.ids) > max_tokens:
            raise DataError(
                f"held-out row {row['id']} has {len(conversation.ids)} tokens, the limit is {max_tokens}: "
                "raise max_tokens in the recipe, or remove the row"
            )
        if 1 not in conversation.mask[1:]:
            raise DataError(f"held-out row {row['id']} renders to no answer token: give it an answer, or remove it")
        conversations.append(conversation)
    return conversations
