"""What a later stage would refuse: stages that contradict each other, the base model, or the rows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from include.errors import ConfigurationError
from include.specs.check import Config, Serving
from jobs.check.conversion import require_convertible
from jobs.common.base_model import require_embeddings, require_positions

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from jobs.check.tables import Row
    from jobs.common.heldout import Asked


def require_consistent(config: Config) -> None:
    """Refuse a recipe whose stages contradict each other.

    Raises:
        ConfigurationError: they do.
    """
    evaluation, serving = config.evaluation, config.serving
    if evaluation is None:
        return
    if evaluation.rows < evaluation.min_rows:
        raise ConfigurationError(
            f"evaluate.rows is {evaluation.rows}, and the evaluation gate decides nothing below {evaluation.min_rows} "
            f"held-out rows (gates.evaluation.min_rows): raise evaluate.rows to {evaluation.min_rows}"
        )
    if serving is not None and serving.max_new_tokens < evaluation.max_new_tokens:
        raise ConfigurationError(
            f"engine.max_new_tokens is {serving.max_new_tokens}, less than the {evaluation.max_new_tokens} of the "
            "evaluation (evaluate.max_new_tokens), whose answers the engine has to give again: raise "
            f"engine.max_new_tokens to {evaluation.max_new_tokens}"
        )


def require_room(serving: Serving, rows: Sequence[Row], asked: Sequence[Asked]) -> None:
    """Refuse an engine that could not give the answers which the evaluation allows again.

    Args:
        asked: the rows, without those after the last that is evaluated, as the evaluation asks them.

    Raises:
        ConfigurationError: a row's prompt and answer are over the engine's `max_tokens`.
    """
    answered = [(row, one) for row, one in zip(rows[: serving.rows], asked, strict=False) if not one.too_long]
    if not answered:
        return
    row, one = max(answered, key=lambda pair: len(pair[1].prompt) + pair[1].room)
    needed = len(one.prompt) + one.room
    if needed > serving.max_tokens:
        raise ConfigurationError(
            f"engine.max_tokens: held-out row {row['id']} has a prompt of {len(one.prompt)} tokens, which with the "
            f"{one.room} new ones that the evaluation allows is over {serving.max_tokens}: raise engine.max_tokens to "
            f"{needed}"
        )


def require_base(config: Config, base: Path, model: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a base model that the recipe's stages cannot take.

    Args:
        base: its Hugging Face folder.
        model: its `config.json`.

    Raises:
        ConfigurationError: it has too few positions, no token that ends an answer, or no engine can be built of it.
        DataError: the tokenizer belongs to another model.
    """
    require_embeddings(model, tokenizer)
    if tokenizer.eos_token_id is None:
        raise ConfigurationError(
            "the base model's tokenizer names no end-of-text token, so no answer would end: set eos_token in its "
            "tokenizer_config.json"
        )
    if config.training is not None:
        require_positions(model, config.training.max_tokens, "finetune")
    if config.serving is not None:
        require_positions(model, config.serving.max_tokens, "engine")
        require_convertible(base, str(model.get("model_type")))
