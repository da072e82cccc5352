"""The texts of a conversation, and the forms in which they are compared."""

from __future__ import annotations

import re
from collections.abc import Sequence

EDGES = " \t\n.,;:!?…。！？\"'`"
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
    return folded.strip(EDGES) or folded
