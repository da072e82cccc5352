"""A base model by its configuration and tokenizer, before its weights are read."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from include.errors import ConfigurationError, DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def read_config(base: Path) -> dict[str, Any]:
    """Return the `config.json` of a Hugging Face model folder, with its `vocab_size` as an integer.

    Raises:
        DataError: it cannot be read, or has no such size.
    """
    try:
        model = json.loads((base / "config.json").read_text(encoding="utf-8"))
        return model | {"vocab_size": int(model["vocab_size"])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{base / 'config.json'} cannot be read ({type(error).__name__}): the base must hold a Hugging Face "
            "model folder called model/"
        ) from None


def positions(model: Mapping[str, Any]) -> int:
    """Return how many tokens the positions of a `config.json` reach: `sys.maxsize` where it names no limit."""
    return model.get("max_position_embeddings") or model.get("n_positions") or sys.maxsize


def require_positions(model: Mapping[str, Any], max_tokens: int, stage: str) -> None:
    """Refuse to take conversations that the model has no positions for.

    Args:
        stage: whose `max_tokens` it is.

    Raises:
        ConfigurationError: `max_tokens` is beyond them.
    """
    if max_tokens > positions(model):
        raise ConfigurationError(
            f"{stage}.max_tokens {max_tokens} is more than the base model's {positions(model)} positions: lower "
            f"{stage}.max_tokens to {positions(model)}"
        )


def require_embeddings(model: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a tokenizer that has tokens which the model does not embed.

    Raises:
        DataError: it has.
    """
    if len(tokenizer) > model["vocab_size"]:
        raise DataError(
            f"the base model's tokenizer has {len(tokenizer)} tokens, the model embeds {model['vocab_size']} "
            "(vocab_size in config.json): they belong to different models; give base the tokenizer that its model was "
            "trained with"
        )
