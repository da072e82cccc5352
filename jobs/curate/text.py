"""The texts of a conversation, and the forms in which they are compared."""

from __future__ import annotations

import re
from collections.abc import Sequence

_EDGES = " \t\n.,;:!?…。！？\"'`"
_BLANKS = re.compile(r"\s+")


def whole(messages: Sequence[dict[str, str]]) -> str:
    """Every text of a conversation, one after the other."""
    return "\n".join(message["content"] for message in messages)


def request(messages: Sequence[dict[str, str]]) -> str:
    """What comes before the answer, without the system's message: it is often the same in every row."""
    return "\n".join(message["content"] for message in messages[:-1] if message["role"] != "system")


def answer(messages: Sequence[dict[str, str]]) -> str:
    """The last message."""
    return messages[-1]["content"]


def comparable(text: str) -> str:
    """Equal for texts that differ only in case, blanks, or punctuation around them."""
    folded = _BLANKS.sub(" ", text).casefold().strip()
    return folded.strip(_EDGES) or folded


def words(text: str) -> list[str]:
    """The words of a text as near-duplicates are compared: without case and the punctuation around them."""
    return [bare for word in text.casefold().split() if (bare := word.strip(_EDGES))]
