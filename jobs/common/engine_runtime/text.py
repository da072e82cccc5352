"""Conversations to token ids and back for a served engine, with nothing but tokenizers and Jinja.

It imports nothing of this project: serving copies it beside its model, where neither this project nor transformers
exists. The job `engine` checks on every held-out prompt that it gives what transformers gives.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

TOKENIZER = "tokenizer.json"
TEMPLATE = "chat_template.jinja"
GENERATION = "generation.json"


class Text:
    """The tokenizer and the chat template of one engine; safe to share between threads.

    Args:
        special_tokens: values of the template's variables `bos_token`, `eos_token` and so on.
    """

    def __init__(self, tokenizer: Tokenizer, template: str, special_tokens: Mapping[str, Any]) -> None:
        # A tokenizer.json can carry both, left over from training.
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        self._template = _environment().from_string(template)
        self._special_tokens = dict(special_tokens)

    def prompt_ids(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Return the token ids of a conversation, up to where the assistant is to answer.

        Args:
            messages: {"role", "content"} each.

        Raises:
            jinja2.TemplateError: the template does not take this conversation.
        """
        text = self._template.render(
            messages=messages, tools=None, documents=None, add_generation_prompt=True, **self._special_tokens
        )
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def text_ids(self, text: str) -> list[int]:
        """Return the token ids of a bare text, with the special tokens that the tokenizer puts around it."""
        return self._tokenizer.encode(text).ids

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of token ids. Special tokens stay visible: an answer with one in its middle is not sound."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=False)

    def tokens(self, ids: Sequence[int]) -> list[str]:
        """Return the tokens of token ids as the vocabulary spells them, which is how CTranslate2 takes a prompt.

        Raises:
            ValueError: an id is unknown.
        """
        found = [self._tokenizer.id_to_token(token) for token in ids]
        if None in found:
            raise ValueError(f"the tokenizer has no token {ids[found.index(None)]}")
        return found


def load(folder: Path | str) -> Text:
    """Return the tokenizer and chat template of the engine artifact in `folder`.

    Raises:
        OSError, ValueError: a file is missing or damaged.
    """
    root = Path(folder)
    settings = json.loads((root / GENERATION).read_text(encoding="utf-8"))
    return Text(
        Tokenizer.from_file(str(root / TOKENIZER)),
        (root / TEMPLATE).read_text(encoding="utf-8"),
        settings.get("special_tokens", {}),
    )


def _environment() -> ImmutableSandboxedEnvironment:
    """Return Jinja's environment as transformers sets it up for chat templates (`_compile_jinja_template`, 5.18)."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlocks, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


class _GenerationBlocks(Extension):
    """`{% generation %} … {% endgeneration %}`, which marks what training learns from; rendered as its content."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        # A block of its own, not the bare body: an assignment within stays within, as in transformers.
        return nodes.CallBlock(self.call_method("_content"), [], [], body).set_lineno(line)

    @staticmethod
    def _content(caller: Any) -> str:
        return caller()


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)
