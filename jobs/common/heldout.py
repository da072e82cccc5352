"""Held-out rows of a curated data set, as text and as tokens."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from include.errors import DataError
from jobs.common.causal_lm import Conversation
from jobs.common.chat import Message, encode, encode_prompt
from jobs.common.generation import room_after

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Row = dict[str, Any]
"""{"id", "messages": [{"role", "content"}, …, {"role": "assistant", "content"}], "label"?}."""

_REMEDY = "run customize again with refresh: [curate]"


def read_rows(path: Path, limit: int | None = None) -> list[Row]:
    """Return the first `limit` rows of a curated JSONL file.

    Raises:
        DataError: the file is missing or empty, a line is not such a row, or an id is there twice.
    """
    if not path.is_file():
        raise DataError(f"the curated data set holds no {path.name}: {_REMEDY}")
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
        remedy = "give the recipe a held-out set, or raise curate.heldout_fraction"
        raise DataError(
            f"the curated data set's {path.name} is empty: {remedy if path.stem == 'heldout' else 'bring more rows'}"
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
            f'{where} is not {{"id", "messages": […, {{"role": "assistant", "content": text}}]}}: {_REMEDY}'
        )
    if not messages[-1]["content"].strip():
        raise DataError(
            f"{where} (row {row['id']}): the answer is blank, so an empty answer would be right: take it "
            "out of the data set"
        )
    return row


class Asked(NamedTuple):
    """A held-out row as one model is asked it.

    Attributes:
        conversation: prompt and right answer, of which the answer's tokens are marked. Few-shot examples stand before
            them and are not marked.
        prompt: what the model is asked, as token ids.
        answer: tokens of the right answer, its end of turn included.
        room: new tokens that its answer may have, the end of turn included.
        whole: whether the model takes the whole conversation, so that it has a loss.
        too_long: what is too long for the right answer to be given, as "answer of 140 tokens"; empty where it can be.
    """

    conversation: Conversation
    prompt: list[int]
    answer: int
    room: int
    whole: bool
    too_long: str


def ask_rows(
    tokenizer: PreTrainedTokenizerBase,
    rows: Iterable[Row],
    *,
    max_tokens: int,
    max_new_tokens: int,
    positions: int,
    examples: Sequence[Message] = (),
) -> list[Asked]:
    """Return each row as a model is asked it, with the room that is left for an answer.

    Args:
        max_tokens: of a row, prompt and answer together, without the examples.
        max_new_tokens: of an answer.
        positions: that the model has, for all of it.
        examples: messages before each row's own.

    Raises:
        DataError: the template cannot render a row, or renders its answer to no token.
    """
    return [
        _ask(tokenizer, row, examples, max_tokens=max_tokens, max_new_tokens=max_new_tokens, positions=positions)
        for row in rows
    ]


def _ask(
    tokenizer: PreTrainedTokenizerBase,
    row: Row,
    examples: Sequence[Message],
    *,
    max_tokens: int,
    max_new_tokens: int,
    positions: int,
) -> Asked:
    alone = encode_row(tokenizer, row)
    conversation = _after_examples(tokenizer, row, examples, sum(alone.mask)) if examples else alone
    prompt = encode_prompt(tokenizer, [*examples, *row["messages"]])
    room = room_after(prompt, max_new_tokens, positions if examples else min(max_tokens, positions))
    whole = len(alone.ids) <= max_tokens and len(conversation.ids) <= positions
    answer = _last_answer(alone.mask)
    too_long = ""
    if answer > max_new_tokens:
        too_long = f"answer of {answer} tokens"
    elif answer > room or not whole:
        too_long = f"prompt of {len(prompt)} tokens"
    return Asked(conversation, prompt, answer, room, whole, too_long)


def _after_examples(
    tokenizer: PreTrainedTokenizerBase, row: Row, examples: Sequence[Message], answer_tokens: int
) -> Conversation:
    """Return the row with the examples before it, whose answers are read but not scored."""
    after = encode_row(tokenizer, {**row, "messages": [*examples, *row["messages"]]})
    marked = [position for position, one in enumerate(after.mask) if one]
    own = set(marked[-answer_tokens:])
    return Conversation(after.ids, [int(position in own) for position in range(len(after.mask))])


def _last_answer(mask: Sequence[int]) -> int:
    """Return the number of tokens of the last answer, its end of turn included."""
    end = len(mask) - mask[::-1].index(1)
    return next((end - start for start in range(end, 0, -1) if not mask[start - 1]), end)


def encode_row(tokenizer: PreTrainedTokenizerBase, row: Row) -> Conversation:
    """Encode a row as token ids and answer mask.

    Raises:
        DataError: the template cannot render it, or renders its answer to no token.
    """
    try:
        conversation = Conversation(*encode(tokenizer, row["messages"]))
    except DataError as error:
        raise DataError(f"held-out row {row['id']}: {error}") from None
    if 1 not in conversation.mask[1:]:
        raise DataError(f"held-out row {row['id']} renders to no answer token: give it an answer, or remove it")
    return conversation


def encode_rows(
    tokenizer: PreTrainedTokenizerBase, rows: Iterable[Row], max_tokens: int, count: int | None = None, *, stage: str
) -> list[Conversation]:
    """Encode the first `count` rows that have at most `max_tokens` tokens; by default all of them.

    Args:
        stage: whose `max_tokens` it is.

    Raises:
        DataError: no row is so short; or the template cannot render one, or renders its answer to no token.
    """
    shortest = sys.maxsize
    found: list[Conversation] = []
    for row in rows:
        one = encode_row(tokenizer, row)
        shortest = min(shortest, len(one.ids))
        if len(one.ids) <= max_tokens:
            found.append(one)
            if len(found) == count:
                break
    if not found:
        raise DataError(
            f"every held-out row is over {stage}.max_tokens, {max_tokens}: raise {stage}.max_tokens to {shortest}"
        )
    return found
