"""Greedy decoding in batches, the same text whatever the batch size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from include.errors import ConfigurationError
from jobs.common.causal_lm import SharedPrefix, left_padded

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Generated(NamedTuple):
    """An answer's token ids without its end token; `finished` is False where it was cut off."""

    ids: list[int]
    finished: bool


def end_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the ids of the tokens that end an answer, sorted: the tokenizer's, and those of the generation config.

    Raises:
        ConfigurationError: neither names one.
    """
    named = model.generation_config.eos_token_id if model.generation_config is not None else None
    ends = {tokenizer.eos_token_id, *(named if isinstance(named, list) else [named])} - {None}
    if not ends:
        raise ConfigurationError(
            "the model's tokenizer names no end-of-text token, so no answer would end: set eos_token in its "
            "tokenizer_config.json"
        )
    return sorted(ends)


def greedy(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    end_ids: Sequence[int],
    pad_id: int,
    batch_size: int,
    on_batch: Callable[[int], None] = lambda done: None,
) -> list[Generated]:
    """Return the most likely continuation of each prompt, token by token, up to an end token or `max_new_tokens`.

    Prompts are taken shortest first, so that a batch holds little padding.

    Args:
        end_ids: tokens that end an answer.
        on_batch: called with the number of prompts done, after each batch.
    """
    import torch
    from transformers import GenerationConfig

    # Replaces the model's own, whose sampling and penalties generate() would merge into one given to it.
    model.generation_config = GenerationConfig(
        do_sample=False, max_new_tokens=max_new_tokens, eos_token_id=list(end_ids), pad_token_id=pad_id
    )
    answers: dict[int, Generated] = {}
    # The last token stays out of the prefix: a forward pass needs something to read.
    prefix = SharedPrefix(model, [prompt[:-1] for prompt in prompts])
    order = sorted(range(len(prompts)), key=lambda index: (len(prompts[index]), index))
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        ids, attention = left_padded([prompts[index][prefix.length :] for index in chosen], pad_id, model.device)
        common = torch.tensor([prefix.ids] * len(chosen), dtype=torch.long, device=model.device)
        with torch.inference_mode():
            written = model.generate(
                input_ids=torch.cat([common, ids], dim=1),
                attention_mask=torch.cat([torch.ones_like(common), attention], dim=1),
                past_key_values=prefix.cache(len(chosen)),
            )
        for index, row in zip(chosen, written[:, prefix.length + ids.shape[1] :].tolist(), strict=True):
            answers[index] = _cut(row, end_ids)
        on_batch(start + len(chosen))
    return [answers[index] for index in range(len(prompts))]


def answer_within(
    answer: Callable[[Sequence[Sequence[int]], int, Callable[[int], None]], list[Generated]],
    prompts: Sequence[Sequence[int]],
    rooms: Sequence[int],
    *,
    max_new_tokens: int,
    positions: int,
    on_batch: Callable[[int], None] = lambda done: None,
) -> list[Generated]:
    """Return the answer to each prompt, cut off where its room ends; without room it is empty and not finished.

    Args:
        answer: gives the answers to prompts: (prompts, new tokens of each, called with how many are done).
        rooms: new tokens that each prompt leaves room for, at most `max_new_tokens`.
        positions: of the model, which no answer goes beyond: some models end with an error there.
        on_batch: called with the number of prompts done.
    """
    # As many together as can be: one that comes near the positions shares its batches with its like.
    limits = [
        max_new_tokens if room and len(prompt) + max_new_tokens <= positions else room
        for prompt, room in zip(prompts, rooms, strict=True)
    ]

    def counted_from(before: int) -> Callable[[int], None]:
        return lambda done: on_batch(before + done)

    answers = [Generated([], False)] * len(prompts)
    done = limits.count(0)
    if done:
        on_batch(done)
    for limit in sorted({*limits} - {0}, reverse=True):
        chosen = [index for index, own in enumerate(limits) if own == limit]
        found = answer([prompts[index] for index in chosen], limit, counted_from(done))
        for index, one in zip(chosen, found, strict=True):
            answers[index] = cut_off(one, rooms[index])
        done += len(chosen)
    return answers


def room_after(prompt: Sequence[int], max_new_tokens: int, reach: int) -> int:
    """Return the new tokens that an answer to a prompt may have, where both together may have `reach` at most."""
    return max(0, min(max_new_tokens, reach - len(prompt)))


def cut_off(answer: Generated, room: int) -> Generated:
    """Return an answer that ends, its end token included, within `room` tokens."""
    return Generated(answer.ids[:room], answer.finished and len(answer.ids) < room)


def _cut(ids: list[int], end_ids: Sequence[int]) -> Generated:
    end = next((position for position, token in enumerate(ids) if token in end_ids), None)
    return Generated(ids, False) if end is None else Generated(ids[:end], True)
