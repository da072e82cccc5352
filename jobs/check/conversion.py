"""Whether the engine's builder converts the base model's kind."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

from include.errors import ConfigurationError

CONVERTED = frozenset({"gemma2", "llama", "mistral", "phi3", "qwen2", "qwen3"})
"""Kinds (`model_type` of a config.json) that CTranslate2 is known to convert. For any other it is imported and asked,
which loads torch and takes 10 CPU-seconds."""


def require_convertible(base: Path, kind: str) -> None:
    """Refuse a base model of a kind that CTranslate2 has no loader for.

    Args:
        base: the Hugging Face model folder.
        kind: `model_type` of its config.json.

    Raises:
        ConfigurationError: it has none, or transformers does not know the kind either.
    """
    if kind in CONVERTED:
        return
    from ctranslate2.converters.transformers import _MODEL_LOADERS
    from transformers import AutoConfig

    try:
        convertible = type(AutoConfig.from_pretrained(str(base), local_files_only=True)).__name__ in _MODEL_LOADERS
    except (ValueError, OSError):
        convertible = False
    if not convertible:
        raise ConfigurationError(
            f"CTranslate2 {version('ctranslate2')} converts no model of type {kind!r}, so no engine could be built of "
            "what this run trains: choose another base model"
        )
