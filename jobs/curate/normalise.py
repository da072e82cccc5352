"""NeMo Curator's text modifiers, applied to every message of a conversation."""

from __future__ import annotations

import re

from nemo_curator.stages.text.modifiers.doc_modifier import DocumentModifier
from nemo_curator.stages.text.modifiers.modifier import Modify
from nemo_curator.stages.text.modifiers.string.newline_normalizer import NewlineNormalizer
from nemo_curator.stages.text.modifiers.unicode.unicode_reformatter import UnicodeReformatter

from jobs.curate import text

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
        # A mended line end or character can make mojibake of what stands beside it, for the next pass to mend.
        for _ in range(_MOST_PASSES):
            before = content
            for modifier in self._modifiers:
                content = modifier.modify_document(content)
            if content == before:
                break
        return content


class QuickUnicodeReformatter(UnicodeReformatter):
    """Curator's own (ftfy), which is not asked about plain ASCII: it has nothing to mend there, and takes its time."""

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
    """Mend encodings and line ends, compose characters (NFC), drop control characters and blanks around texts.

    HTML entities stay: in commands and code they are what was meant.
    """
    reformat = QuickUnicodeReformatter(unescape_html=False, fix_line_breaks=True, normalization="NFC", explain=False)
    return Modify(EachMessage(reformat, QuickNewlineNormalizer(), Strip()), input_fields="messages")


def derive_texts() -> Modify:
    """Columns `text`, `request` and `answer` from the messages: what filters and comparisons look at."""
    return Modify(
        [text.whole, text.request, text.answer], input_fields="messages", output_fields=["text", "request", "answer"]
    )
