"""What a later stage would refuse whatever the rows say: stages that contradict each other, or the base model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from include.errors import ConfigurationError
from include.specs.check import Config
from jobs.common.base_model import positions, require_embeddings, require_positions

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


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
            "held-out rows (gates.evaluation.min_rows): raise evaluate.rows in the recipe"
        )
    if serving is not None and serving.max_new_tokens < evaluation.max_new_tokens:
        raise ConfigurationError(
            f"engine.max_new_tokens is {serving.max_new_tokens}, less than the {evaluation.max_new_tokens} of the "
            "evaluation (evaluate.max_new_tokens), whose answers the engine has to give again: raise "
            "engine.max_new_tokens in the recipe"
        )


def require_base(config: Config, model: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a base model that the recipe's stages cannot take.

    Args:
        model: its `config.json`.

    Raises:
        ConfigurationError: it has too few positions, or no token that ends an answer.
        DataError: the tokenizer belongs to another model.
    """
    require_embeddings(model, tokenizer)
    if tokenizer.eos_token_id is None:
        raise ConfigurationError(
            "the base model's tokenizer names no end-of-text token, so no answer would end: set eos_token in its "
            "tokenizer_config.json"
        )
    if config.training is not None:
        require_positions(model, config.training.max_tokens)
    if config.serving is not None and config.serving.max_tokens > positions(model):
        raise ConfigurationError(
            f"engine.max_tokens {config.serving.max_tokens} is more than the base model's {positions(model)} "
            "positions: lower it in the recipe"
        )
