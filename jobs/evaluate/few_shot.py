"""The examples in front of a few-shot prompt."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING

from include.errors import ConfigurationError
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
    room: int,
    seed: int,
) -> list[Message]:
    """Up to `count` training conversations, drawn by `seed`, that every row of `asked` can follow within `room`.

    Args:
        room: tokens that the longest few-shot prompt may have.

    Returns:
        The examples' messages, in a row; fewer examples where `room` takes no more.

    Raises:
        ConfigurationError: not one example fits.
    """
    drawn = random.Random(seed).sample(training, min(count, len(training)))
    # Examples add the same tokens to every prompt but for a merge at the seam, so one row speaks for all.
    longest = max(asked, key=lambda row: len(encode_prompt(tokenizer, row["messages"])))
    while drawn:
        messages = [message for row in drawn for message in row["messages"]]
        if len(encode_prompt(tokenizer, messages + longest["messages"])) + len(drawn) <= room:
            return messages
        drawn.pop()
    raise ConfigurationError(
        f"max_new_tokens: the base model's length leaves {room} tokens for a prompt, too few for held-out row "
        f"{longest['id']} with one training example before it: lower evaluate.max_new_tokens, or remove long rows"
    )
