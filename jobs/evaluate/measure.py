"""Score one model's answers to the held-out rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from jobs.common.causal_lm import answer_logits, longest_sequence
from jobs.common.chat import Message
from jobs.common.generation import Generated, answer_within, end_ids, greedy
from jobs.common.heldout import Asked, Row, ask_rows
from jobs.common.scoring import exact_match, rouge_l

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_DIGITS = 6
"""Decimals kept of a score: float32 sums have no more."""


class Scored(NamedTuple):
    """One row's answer and scores.

    Attributes:
        too_long: whether there was no room for the right answer, so that none is finished.
        loss: mean in nats an answer token; None where it is not a finite number, or there are no `tokens`.
        tokens: of the answer, that the loss is the mean over; 0 where the model does not take the row whole.
    """

    text: str
    finished: bool
    too_long: bool
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

    A row that is too long for the model (its answer for `max_new_tokens`, or its prompt for what is left) is answered
    as far as there is room, and counts as unfinished, thus wrong. Where not even the conversation fits, it has no loss.

    Args:
        examples: messages before each row's own.
        max_tokens: of a row, without the examples.
        on_batch: called with the number of rows answered, after each batch.

    Raises:
        DataError: the template cannot render a row, or renders its answer to no token.
        ConfigurationError: no token ends an answer.
    """
    positions = longest_sequence(model)
    asked = ask_rows(
        tokenizer,
        rows,
        max_tokens=max_tokens,
        max_new_tokens=max_new_tokens,
        positions=positions,
        examples=examples,
    )
    ends = end_ids(model, tokenizer)
    pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else ends[0]
    losses = _losses(model, asked, pad_id, batch_size)

    def answer(prompts: Sequence[Sequence[int]], limit: int, on_batch: Callable[[int], None]) -> list[Generated]:
        return greedy(
            model,
            prompts,
            max_new_tokens=limit,
            end_ids=ends,
            pad_id=pad_id,
            batch_size=batch_size,
            on_batch=on_batch,
        )

    answers = answer_within(
        answer,
        [row.prompt for row in asked],
        [row.room for row in asked],
        max_new_tokens=max_new_tokens,
        positions=positions,
        on_batch=on_batch,
    )
    return [
        _scored(tokenizer, row, own, given, loss)
        for row, own, given, loss in zip(rows, asked, answers, losses, strict=True)
    ]


def _losses(model: PreTrainedModel, asked: Sequence[Asked], pad_id: int, batch_size: int) -> list[float | None]:
    """Return the mean loss of each row's answer; None where the model does not take the row whole."""
    from torch.nn.functional import cross_entropy

    losses: list[float | None] = [None] * len(asked)
    whole = [number for number, row in enumerate(asked) if row.whole]
    if whole:
        conversations = [asked[number].conversation for number in whole]
        for index, logits, targets in answer_logits(model, conversations, pad_id=pad_id, batch_size=batch_size):
            losses[whole[index]] = cross_entropy(logits, targets).item()
    return losses


def _scored(
    tokenizer: PreTrainedTokenizerBase, row: Row, asked: Asked, answer: Generated, loss: float | None
) -> Scored:
    # Special tokens stay visible: an answer with one in its middle is not the reference.
    text = tokenizer.decode(answer.ids, skip_special_tokens=False, clean_up_tokenization_spaces=False).strip()
    reference = row["messages"][-1]["content"]
    finished = answer.finished and not asked.too_long
    return Scored(
        text=text,
        finished=finished,
        too_long=bool(asked.too_long),
        exact_match=exact_match(text, reference) if finished else 0,
        rouge_l=round(rouge_l(text, reference), _DIGITS),
        loss=round(loss, _DIGITS) if loss is not None and math.isfinite(loss) else None,
        tokens=sum(asked.conversation.mask) if asked.whole else 0,
    )
