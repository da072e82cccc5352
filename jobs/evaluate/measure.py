"""Score one model's answers to the held-out rows."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from include.errors import ConfigurationError
from jobs.common.causal_lm import Conversation, answer_logits, longest_sequence
from jobs.common.chat import Message, encode_prompt
from jobs.common.generation import Generated, end_ids, greedy
from jobs.common.heldout import Row, encode_rows
from jobs.common.scoring import exact_match, rouge_l

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_DIGITS = 6
"""Decimals kept of a score: float32 sums have no more."""


class Scored(NamedTuple):
    """One row's answer and scores; `loss` is the mean in nats an answer token, None where it is not a finite number."""

    text: str
    finished: bool
    exact_match: int
    rouge_l: float
    loss: float | None
    tokens: int


def measure(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Row],
    *,
    examples: Sequence[Message] = (),
    max_tokens: int,
    max_new_tokens: int,
    batch_size: int,
    on_batch: Callable[[int], None],
) -> list[Scored]:
    """Answer every row greedily and score it.

    Args:
        examples: messages before each row's own.
        max_tokens: of a row, without the examples.
        on_batch: called with the number of rows answered, after each batch.

    Raises:
        DataError: a row is too long, or has no answer.
        ConfigurationError: a reference is longer than `max_new_tokens`, so that no model could give it.
    """
    conversations = encode_rows(tokenizer, rows, max_tokens)
    if examples:
        conversations = [
            _after_examples(examples, tokenizer, row, sum(alone.mask))
            for row, alone in zip(rows, conversations, strict=True)
        ]
    prompts = [encode_prompt(tokenizer, [*examples, *row["messages"]]) for row in rows]
    _check_lengths(rows, conversations, prompts, max_new_tokens, longest_sequence(model))
    ends = end_ids(model, tokenizer)
    pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else ends[0]
    losses = _losses(model, conversations, pad_id, batch_size)
    answers = greedy(
        model,
        prompts,
        max_new_tokens=max_new_tokens,
        end_ids=ends,
        pad_id=pad_id,
        batch_size=batch_size,
        on_batch=on_batch,
    )
    return [
        _scored(tokenizer, row, answer, loss, sum(conversation.mask))
        for row, answer, loss, conversation in zip(rows, answers, losses, conversations, strict=True)
    ]


def _after_examples(
    examples: Sequence[Message], tokenizer: PreTrainedTokenizerBase, row: Row, answer_tokens: int
) -> Conversation:
    """Return the row with the examples before it, whose answers are read but not scored."""
    (whole,) = encode_rows(tokenizer, [{**row, "messages": [*examples, *row["messages"]]}], sys.maxsize)
    own = {position for position, marked in enumerate(whole.mask) if marked}
    own = set(sorted(own)[-answer_tokens:])
    return Conversation(whole.ids, [int(position in own) for position in range(len(whole.mask))])


def _check_lengths(
    rows: Sequence[Row],
    conversations: Sequence[Conversation],
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    longest: int,
) -> None:
    for row, conversation, prompt in zip(rows, conversations, prompts, strict=True):
        answer = _last_answer(conversation.mask)
        if answer > max_new_tokens:
            raise ConfigurationError(
                f"max_new_tokens: held-out row {row['id']} has an answer of {answer} tokens, over the limit of "
                f"{max_new_tokens}: raise evaluate.max_new_tokens in the recipe"
            )
        if len(prompt) + max_new_tokens > longest:
            raise ConfigurationError(
                f"max_new_tokens: held-out row {row['id']} has a prompt of {len(prompt)} tokens, which with "
                f"{max_new_tokens} new ones is over the model's {longest}: lower evaluate.max_new_tokens"
            )


def _last_answer(mask: Sequence[int]) -> int:
    """Return the number of tokens of the last answer, its end of turn included."""
    end = len(mask) - mask[::-1].index(1)
    return next((end - start for start in range(end, 0, -1) if not mask[start - 1]), end)


def _losses(model: PreTrainedModel, conversations: Sequence[Conversation], pad_id: int, batch_size: int) -> list[float]:
    from torch.nn.functional import cross_entropy

    losses = [math.nan] * len(conversations)
    for index, logits, targets in answer_logits(model, conversations, pad_id=pad_id, batch_size=batch_size):
        losses[index] = cross_entropy(logits, targets).item()
    return losses


def _scored(tokenizer: PreTrainedTokenizerBase, row: Row, answer: Generated, loss: float, tokens: int) -> Scored:
    # Special tokens stay visible: an answer with one in its middle is not the reference.
    text = tokenizer.decode(answer.ids, skip_special_tokens=False, clean_up_tokenization_spaces=False).strip()
    reference = row["messages"][-1]["content"]
    return Scored(
        text=text,
        finished=answer.finished,
        exact_match=exact_match(text, reference) if answer.finished else 0,
        rouge_l=round(rouge_l(text, reference), _DIGITS),
        loss=round(loss, _DIGITS) if math.isfinite(loss) else None,
        tokens=tokens,
    )
