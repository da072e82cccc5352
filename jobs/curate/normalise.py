"""NeMo Curator's text modifiers, applied to every message of a conversation."""

from __future__ import annotations

import re

from nemo_curator.stages.text.modifiers.doc_modifier import DocumentModifier
from nemo_curator.stages.text.modifiers.modifier import Modify
from nemo_curator.stages.text.modifiers.string.newline_normalizer import NewlineNormalizer
from nemo_curator.stages.text.modifiers.unicode.unicode_reformatter import UnicodeReformatter

from jobs.common import conversations

_UNUSUAL = re.compile(r"[^\x20-\x7e\t\n]")


_MOST_PASSES = 8


class EachMessage(DocumentModifier):
    """Applies modifiers of a text to the content of every message, in order, until they change nothing."""

    def __init__(self, *modifiers: DocumentModifier) -> None:
        super().__init__()
        self._modifiers = modifiers

    def modify_document(self, messages: list[dict[str, str]]) -> list[dict[str, str]]:
        return [{**message, "content": self._modify(message["content"])} for message in messages]

    def _modify(self, content: str) -> str:
        # A repaired line end or character can turn its neighbours into mojibake, which the next pass repairs.
        for _ in range(_MOST_PASSES):
            before = content
            for modifier in self._modifiers:
                content = modifier.modify_document(content)
            if content == before:
                break
        return content


class QuickUnicodeReformatter(UnicodeReformatter):
    """Curator's own (ftfy), which is not called on plain ASCII: there is nothing to repair, and it is slow."""

    def modify_document(self, text: str) -> str:
        return super().modify_document(text) if _UNUSUAL.search(text) else text


class QuickNewlineNormalizer(NewlineNormalizer):
    """Curator's own, where there is a run of line ends at all."""

    def modify_document(self, text: str) -> str:
        return super().modify_document(text) if "\n\n\n" in text or "\r\n\r\n\r\n" in text else text


class Strip(DocumentModifier):
    """Removes blanks around a text."""

    def modify_document(self, text: str) -> str:
        return text.strip()


def normalise() -> Modify:
    """Return the stage that cleans texts.

    It repairs encodings and line ends, composes characters (NFC), and removes control characters and outer blanks.

    HTML entities stay: in commands and code they are meant.
    """
    reformat = QuickUnicodeReformatter(unescape_html=False, fix_line_breaks=True, normalization="NFC", explain=False)
    return Modify(EachMessage(reformat, QuickNewlineNormalizer(), Strip()), input_fields="messages")


def derive_texts() -> Modify:
    """Return the stage that adds the columns `text`, `request` and `answer`, which filters and comparisons read."""
    return Modify(
        [conversations.full_text, conversations.request, conversations.answer],
        input_fields="messages",
        output_fields=["text", "request", "answer"],
    )
