"""Render conversations as tokens: training, evaluation, merge and serving share this rendering."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from include.errors import AnemoneError, ConfigurationError, DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = dict[str, Any]
"""{"role": "system" | "user" | "assistant", "content": text}."""

_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")


def load_tokenizer(model_folder: Path, chat_template: str) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a Hugging Face model folder, with `chat_template` (Jinja text) in place of its own.

    Raises:
        ConfigurationError: the template does not parse, or marks nothing with `{% generation %}`, so that no token
            would be trained on.
        DataError: the folder holds no tokenizer, or a damaged one.
    """
    if not chat_template.strip():
        raise ConfigurationError("chat_template: it is empty; name a file of include/templates/ as chat_template")
    if not _GENERATION.search(chat_template):
        raise ConfigurationError(
            "chat_template: it has no {% generation %} block, so nothing in it marks the tokens to train on; "
            "put {% generation %} … {% endgeneration %} around the assistant's text"
        )
    from jinja2 import TemplateError

    # Not AutoTokenizer: to import it loads torch and all model classes (10 CPU-s), and tokenizer.json is enough.
    from transformers import PreTrainedTokenizerFast
    from transformers.utils.chat_template_utils import _compile_jinja_template

    try:
        _compile_jinja_template(chat_template)
    except TemplateError as error:
        raise ConfigurationError(f"chat_template: not valid Jinja ({error}); correct the template") from None
    missing = [name for name in ("tokenizer.json", "tokenizer_config.json") if not (model_folder / name).is_file()]
    if missing:
        raise DataError(
            f"{model_folder} has no {' and no '.join(missing)}: give a Hugging Face folder with a fast tokenizer"
        )
    try:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(str(model_folder), local_files_only=True)
    except (AnemoneError, MemoryError):
        raise
    except Exception as error:  # tokenizers raises nothing narrower
        raise DataError(
            f"{model_folder} holds no tokenizer that can be loaded ({' '.join(str(error).split())[:200]}): fetch the "
            "model again"
        ) from error
    tokenizer.chat_template = chat_template
    return tokenizer


def encode(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> tuple[list[int], list[int]]:
    """Encode a whole conversation, and mark the tokens to train on.

    Returns:
        (ids, mask) of the same length; the mask is 1 on the tokens that the template's `{% generation %}` blocks
        render (an answer's first token to its end of turn) and 0 elsewhere.

    Raises:
        ConfigurationError: the template uses what Jinja's sandbox forbids.
        DataError: the template cannot render these messages.
    """
    encoding = _render(tokenizer, messages, return_assistant_tokens_mask=True)
    return list(encoding["input_ids"]), list(encoding["assistant_masks"])


def encode_prompt(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> list[int]:
    """Encode what comes before the answer: all messages but a last assistant's, and the generation prompt.

    Raises:
        ConfigurationError, DataError: as `encode` does.
    """
    asked = list(messages)
    if asked and asked[-1]["role"] == "assistant":
        asked.pop()
    return list(_render(tokenizer, asked, add_generation_prompt=True)["input_ids"])


def _render(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], **options: bool) -> Any:
    from jinja2 import TemplateError
    from jinja2.exceptions import SecurityError

    try:
        return tokenizer.apply_chat_template(list(messages), tokenize=True, return_dict=True, **options)
    except SecurityError as error:
        raise ConfigurationError(
            f"chat_template: it reaches for what a template must not ({error}); correct the template"
        ) from None
    except (TemplateError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError) as error:
        raise DataError(
            f"the chat template cannot render the conversation that starts with {_start(messages)} "
            f"({type(error).__name__}: {error}): correct the template, or take the row out of the data set"
        ) from None


def _start(messages: Sequence[Message]) -> str:
    first = messages[0] if messages else None
    return repr(first.get("content") if isinstance(first, dict) else first)[:40]
