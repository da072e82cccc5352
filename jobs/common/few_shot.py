"""Choose the examples of a few-shot prompt."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING

from jobs.common.chat import Message, encode_prompt
from jobs.common.heldout import Row

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def choose_examples(
    tokenizer: PreTrainedTokenizerBase,
    training: Sequence[Row],
    asked: Sequence[Row],
    *,
    count: int,
    max_prompt_tokens: int,
    seed: int,
) -> list[Message]:
    """Draw up to `count` training conversations, by `seed`, that leave room for the prompt of every row of `asked`.

    Args:
        max_prompt_tokens: tokens that the longest few-shot prompt may have.

    Returns:
        The examples' messages, one after the other; fewer examples where no more fit. Where not one of them leaves
        room for all rows, the shortest, and who asks the rows has to see for which it is too long.
    """
    drawn = random.Random(seed).sample(training, min(count, len(training)))
    # Examples add the same tokens to every prompt, save for merges at the boundary, so one row stands for all.
    longest = max(asked, key=lambda row: len(encode_prompt(tokenizer, row["messages"])))
    for number in range(len(drawn), 0, -1):
        messages = [message for row in drawn[:number] for message in row["messages"]]
        if len(encode_prompt(tokenizer, messages + longest["messages"])) + number <= max_prompt_tokens:
            return messages
    shortest = min(drawn, key=lambda row: len(encode_prompt(tokenizer, [*row["messages"], *longest["messages"]])))
    return list(shortest["messages"])
