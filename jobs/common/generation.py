"""Greedy decoding in batches, the same text whatever the batch size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from jobs.common.causal_lm import SharedPrefix, left_padded

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Generated(NamedTuple):
    """An answer's token ids without its end token; `finished` is false where it was cut off."""

    ids: list[int]
    finished: bool


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
    """The most likely continuation of each prompt, token by token, up to an end token or `max_new_tokens`.

    Prompts are taken shortest first, so that a batch holds little padding.

    Args:
        end_ids: tokens that end an answer.
        on_batch: told the number of prompts done, after each batch.
    """
    import torch
    from transformers import GenerationConfig

    # Replaces the model's own, whose sampling and penalties would be merged into the one given to generate().
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


def _cut(ids: list[int], end_ids: Sequence[int]) -> Generated:
    end = next((position for position, token in enumerate(ids) if token in end_ids), None)
    return Generated(ids, False) if end is None else Generated(ids[:end], True)
