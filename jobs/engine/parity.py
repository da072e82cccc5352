"""Compare the engine's predictions and answers with those of the merged model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from include.errors import DivergenceError
from include.specs.engine import Config
from include.statistics import PairedCounts, paired_difference_interval
from jobs.common.causal_lm import Conversation, answer_logits
from jobs.engine.builder import Engine

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

_BATCH_SIZE = 16


class Agreement(NamedTuple):
    """The figures of `parity.json` (see `include.specs.engine.Spec`)."""

    prompts: int
    positions: int
    mean_kl: float
    top1_agreement: float
    rows: int
    same_text: float
    merged_exact_match: float
    engine_exact_match: float
    lost: int
    won: int
    score_loss: float
    score_loss_upper: float


class Divergence(NamedTuple):
    """Over answer positions: how many, mean KL in nats (merged against engine), share with the same top token."""

    positions: int
    mean_kl: float
    top1_agreement: float


def divergence(
    merged: PreTrainedModel, engine: Engine, conversations: Sequence[Conversation], pad_id: int
) -> Divergence:
    """Return how the predictions of the two differ at the answer tokens of `conversations`."""
    import numpy as np

    # In the order of answer_logits, so that neither side's numbers have to be kept.
    ordered = sorted(conversations, key=lambda row: len(row.ids))
    found = engine.answer_log_probabilities(ordered)
    total, same, positions = 0.0, 0, 0
    for (_, logits, _), ours in zip(_references(merged, ordered, pad_id), found, strict=True):
        expected = logits.double().log_softmax(-1).cpu().numpy()
        # Engines pad the vocabulary; a token that the source lacks is left out of the sum.
        ours = ours[:, : expected.shape[1]]
        total += float((np.exp(expected) * (expected - ours)).sum())
        same += int((expected.argmax(-1) == ours.argmax(-1)).sum())
        positions += len(expected)
    return Divergence(positions, total / positions, same / positions)


def _references(
    model: PreTrainedModel, conversations: Sequence[Conversation], pad_id: int
) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
    return answer_logits(model, conversations, pad_id=pad_id, batch_size=_BATCH_SIZE)


class Answered(NamedTuple):
    """One row: the merged model's answer and the engine's, and whether each is right."""

    merged: str
    engine: str
    merged_right: bool
    engine_right: bool


def agreement(prompts: int, found: Divergence, answers: Sequence[Answered]) -> Agreement:
    """Return all figures together; a lost row is one that only the merged model answered correctly."""
    counts = PairedCounts.of((one.merged_right, one.engine_right) for one in answers)
    return Agreement(
        prompts=prompts,
        **found._asdict(),
        rows=len(answers),
        same_text=sum(one.merged == one.engine for one in answers) / len(answers),
        merged_exact_match=sum(one.merged_right for one in answers) / len(answers),
        engine_exact_match=sum(one.engine_right for one in answers) / len(answers),
        lost=int(counts.first_only),
        won=int(counts.second_only),
        score_loss=counts.difference,
        score_loss_upper=paired_difference_interval(counts).upper,
    )


def require(agreement: Agreement, config: Config) -> None:
    """Refuse an agreement that exceeds a limit of `config.parity`; NaN exceeds all of them.

    Raises:
        DivergenceError: with all figures and limits.
    """
    limits = config.parity
    kept = (
        agreement.mean_kl <= limits.max_mean_kl
        and agreement.top1_agreement >= limits.min_top1
        and agreement.same_text >= limits.min_same_text
        and agreement.score_loss <= limits.max_score_loss
    )
    if not kept:
        remedy = "run release with the override engine.compute_type: float32, or with other limits in engine.parity"
        if config.compute_type == "float32":
            remedy = "run release with other limits in engine.parity among its overrides"
        raise DivergenceError(
            f"the engine does not agree with the merged model: mean KL {agreement.mean_kl:.3g} nats (limit "
            f"{limits.max_mean_kl:g}), same top token {agreement.top1_agreement:.4f} (limit {limits.min_top1:g}), over "
            f"{agreement.positions} answer tokens of {agreement.prompts} held-out rows; same greedy text "
            f"{agreement.same_text:.4f} (limit {limits.min_same_text:g}), exact match "
            f"{agreement.merged_exact_match:.4f} → {agreement.engine_exact_match:.4f}, {agreement.lost} rows lost and "
            f"{agreement.won} won, a loss of {agreement.score_loss:.4f} (limit {limits.max_score_loss:g}; 95% interval "
            f"up to {agreement.score_loss_upper:.4f}), over {agreement.rows} rows; nothing was committed: {remedy}"
        )
