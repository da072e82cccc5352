"""Compare the logits of the merged model with those of the unmerged one."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from include.errors import DivergenceError
from include.specs.merge import Config
from jobs.common.causal_lm import Conversation, answer_logits

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

_BATCH_SIZE = 16


class Agreement(NamedTuple):
    """Differences over the answer positions of held-out rows.

    `max_logit_difference` is absolute, `mean_kl` in nats a position (unmerged against merged), `top1_agreement` the
    share of positions with the same most likely token.
    """

    prompts: int
    positions: int
    max_logit_difference: float
    mean_kl: float
    top1_agreement: float


def save_logits(model: PreTrainedModel, conversations: Sequence[Conversation], pad_id: int, folder: Path) -> None:
    """Write the model's logits at every answer token, one file a conversation.

    On disk, because with a large vocabulary they need more memory than the model.
    """
    from safetensors.torch import save_file

    for index, logits, _ in answer_logits(model, conversations, pad_id=pad_id, batch_size=_BATCH_SIZE):
        save_file({"logits": logits.contiguous()}, folder / f"{index}.safetensors")


def compare(model: PreTrainedModel, conversations: Sequence[Conversation], pad_id: int, folder: Path) -> Agreement:
    """Compare the model's logits with those of another, which `save_logits` wrote into `folder`."""
    from safetensors.torch import load_file

    found = (
        (load_file(folder / f"{index}.safetensors")["logits"].to(logits.device), logits)
        for index, logits, _ in answer_logits(model, conversations, pad_id=pad_id, batch_size=_BATCH_SIZE)
    )
    return _agreement(found, len(conversations))


def _agreement(pairs: Iterable[tuple[torch.Tensor, torch.Tensor]], prompts: int) -> Agreement:
    largest, divergence, same, positions = 0.0, 0.0, 0, 0
    for reference, logits in pairs:
        difference = (reference - logits).abs().max().item()
        # max() of Python would drop a NaN that comes second.
        largest = difference if math.isnan(difference) or difference > largest else largest
        expected, log_merged = reference.double().log_softmax(-1), logits.double().log_softmax(-1)
        divergence += (expected.exp() * (expected - log_merged)).sum().item()
        same += int((reference.argmax(-1) == logits.argmax(-1)).sum())
        positions += len(reference)
    return Agreement(prompts, positions, largest, divergence / positions, same / positions)


def require(agreement: Agreement, config: Config) -> None:
    """Refuse an agreement that exceeds a limit of `config.parity`; NaN exceeds all of them.

    Raises:
        DivergenceError: with all figures and limits.
    """
    limits = config.parity
    kept = (
        agreement.max_logit_difference <= limits.max_logit_difference
        and agreement.mean_kl <= limits.max_kl
        and agreement.top1_agreement >= limits.min_top1
    )
    if not kept:
        remedy = "set merge.dtype: float32, or other limits in merge.parity"
        if config.dtype == "float32":
            remedy = "set other limits in merge.parity"
        raise DivergenceError(
            f"the merged model does not agree with the unmerged one: largest logit difference "
            f"{agreement.max_logit_difference:.3g} (limit {limits.max_logit_difference:g}), mean KL "
            f"{agreement.mean_kl:.3g} nats (limit {limits.max_kl:g}), same top token {agreement.top1_agreement:.4f} "
            f"(limit {limits.min_top1:g}), over {agreement.positions} answer tokens of {agreement.prompts} held-out "
            f"rows; nothing was committed: {remedy}"
        )
