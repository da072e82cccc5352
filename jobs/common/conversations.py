"""The texts of a conversation, and the forms in which they are compared."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

EDGES = " \t\n.,;:!?…。！？\"'`"
"""Characters around a text, or around a word, that comparisons ignore."""

_BLANKS = re.compile(r"\s+")


def full_text(messages: Sequence[dict[str, str]]) -> str:
    """Return every text of a conversation, one a line."""
    return "\n".join(message["content"] for message in messages)


def request(messages: Sequence[dict[str, str]]) -> str:
    """Return the text before the answer, without system messages, which are often the same in every row."""
    return "\n".join(message["content"] for message in messages[:-1] if message["role"] != "system")


def answer(messages: Sequence[dict[str, str]]) -> str:
    """Return the text of the last message."""
    return messages[-1]["content"]


def normalised(text: str) -> str:
    """Return a text in Unicode form NFC, with single blanks and none at the ends; answers are compared in this form."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def comparison_key(text: str) -> str:
    """Return a key that is equal for texts that differ only in case, blanks, or punctuation around them."""
    folded = _BLANKS.sub(" ", text).casefold().strip()
    return folded.strip(EDGES) or folded
