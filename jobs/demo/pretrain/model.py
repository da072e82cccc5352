"""Build and train the base model: a small Llama, Muon on its matrices and AdamW on the rest."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

from include.errors import DivergenceError
from include.specs.demo.pretrain import Config
from jobs.common.imports import without_scikit_learn

if TYPE_CHECKING:
    import torch
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

IGNORED = -100
_POOL = 8
_NEVER_LEARNED = 0.9
"""A final loss above this share of ln(vocabulary) means that training went nowhere."""


class Step(NamedTuple):
    """One optimizer step; `loss` is mean nats a token, `step` counts from 1."""

    step: int
    loss: float
    learning_rate: float


def build_model(config: Config, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Return a freshly initialised Llama with tied embeddings, in float32."""
    with without_scikit_learn():
        from transformers.models.llama import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            num_key_value_heads=config.heads,
            max_position_embeddings=config.max_position,
            initializer_range=config.initializer_range,
            tie_word_embeddings=True,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )


def batches(
    texts: Iterator[str], tokenizer: PreTrainedTokenizerFast, config: Config
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield inputs and labels, int64 [batch_size, tokens of the longest row]: one document a row, cut or padded.

    Documents are not packed: with several in a row the model learned to copy far worse. Rows of similar length share a
    batch, and batches come in random order; otherwise four tokens in ten would be padding.
    """
    import torch
    from torch.nn.utils.rnn import pad_sequence

    rng = random.Random(f"batches:{config.seed}")
    while True:
        pool = [
            f"{tokenizer.bos_token}{text}{tokenizer.eos_token}" for text in islice(texts, _POOL * config.batch_size)
        ]
        encoded = tokenizer(pool, truncation=True, max_length=config.sequence_length)["input_ids"]
        encoded.sort(key=len)
        chunks = [encoded[start : start + config.batch_size] for start in range(0, len(encoded), config.batch_size)]
        rng.shuffle(chunks)
        for chunk in chunks:
            rows = [torch.tensor(row) for row in chunk]
            inputs = pad_sequence(rows, batch_first=True, padding_value=tokenizer.pad_token_id)
            yield inputs, pad_sequence(rows, batch_first=True, padding_value=IGNORED)


def train(model: LlamaForCausalLM, data: Iterator[tuple[torch.Tensor, torch.Tensor]], config: Config) -> Iterator[Step]:
    """Train for `config.steps` steps, and yield each.

    Both optimizers share one schedule: Muon's update is scaled to the size of an AdamW update
    (0.2 · sqrt(max(rows, columns)), Liu et al. 2025, arXiv:2502.16982), so that one rate serves both.

    Raises:
        DivergenceError: the loss is NaN or infinite, or at the end is still near ln(vocabulary).
    """
    import torch

    hidden = [parameter for name, parameter in model.named_parameters() if parameter.ndim == 2 and "embed" not in name]
    others = [parameter for name, parameter in model.named_parameters() if parameter.ndim != 2 or "embed" in name]
    optimizers = [
        torch.optim.Muon(hidden, lr=config.learning_rate, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=config.learning_rate, betas=(0.9, 0.95), weight_decay=0.0),
    ]
    model.train()
    recent: list[float] = []
    for step, (inputs, labels) in enumerate(islice(data, config.steps), start=1):
        rate = learning_rate(step, config)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
        loss = model(input_ids=inputs, labels=labels, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        value = loss.item()
        if not math.isfinite(value):
            raise DivergenceError(
                f"the loss became {value} at step {step} of {config.steps}: lower learning_rate "
                f"(now {config.learning_rate:g}) or raise warmup_steps (now {config.warmup_steps})"
            )
        recent = [*recent[-19:], value]
        yield Step(step, value, rate)
    final, ceiling = sum(recent) / len(recent), math.log(model.config.vocab_size)
    if final > _NEVER_LEARNED * ceiling:
        raise DivergenceError(
            f"the loss ended at {final:.2f}, no better than guessing (ln of the vocabulary is {ceiling:.2f}): "
            f"change learning_rate (now {config.learning_rate:g}) or raise steps (now {config.steps})"
        )


def learning_rate(step: int, config: Config) -> float:
    """Return the rate of optimizer step `step` (from 1): linear warm-up to `config.learning_rate`, cosine to zero."""
    if step <= config.warmup_steps:
        return config.learning_rate * step / config.warmup_steps
    done = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * done))
