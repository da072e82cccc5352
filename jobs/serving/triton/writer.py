"""Token ids to text, piece by piece, for an answer that is streamed or may meet a stop string.

It imports nothing of this project: it is copied beside the model that Triton runs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence


class Writer:
    """Turns token ids into text piece by piece; the pieces together are the whole answer's text.

    Text that a later token could change is held back: half a character, the beginning of a stop string, and, where
    `strip` is set, white space that may be the answer's end.

    Attributes:
        stopped: a stop string was met; the text ends before it.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], stops: Sequence[str], *, strip: bool) -> None:
        self._decode = decode
        self._stops = stops
        self._longest = max((len(stop) for stop in stops), default=0)
        self._strip = strip
        self._ids: list[int] = []
        self._from = self._read = 0  # decoding starts at the first; what the tokens from the second on add is new text
        self._text = ""
        self._given = 0
        self._at_start = strip
        self.stopped = False

    def feed(self, token: int) -> str:
        """Take one more token; return the text that is now certain, which is often empty."""
        if self.stopped:
            return ""
        self._ids.append(token)
        self._extend(at_end=False)
        return self._give(self._certain())

    def finish(self) -> str:
        """Return the rest of the text, when no more tokens come."""
        if not self.stopped:
            self._extend(at_end=True)
        text = self._text.rstrip() if self._strip else self._text
        return self._give(len(text))

    def whole(self, ids: Sequence[int]) -> str:
        """Return the whole text at once, where there are no stop strings."""
        text = self._decode(ids)
        return text.strip() if self._strip else text

    def _extend(self, *, at_end: bool) -> None:
        # Some tokenizers drop a blank at the beginning, so a token's text is the difference that it makes to the text
        # before it (as in text-generation-inference).
        before = self._decode(self._ids[self._from : self._read])
        after = self._decode(self._ids[self._from :])
        if len(after) <= len(before) or (after.endswith("\ufffd") and not at_end):
            return
        known = len(self._text)
        self._text += after[len(before) :]
        self._from, self._read = self._read, len(self._ids)
        found = [at for stop in self._stops if (at := self._text.find(stop, max(0, known - self._longest + 1))) >= 0]
        if found:
            self._text = self._text[: min(found)]
            self.stopped = True

    def _certain(self) -> int:
        end = len(self._text)
        if not self.stopped:
            end -= max((_overlap(self._text, stop) for stop in self._stops), default=0)
        return len(self._text[:end].rstrip()) if self._strip else end

    def _give(self, end: int) -> str:
        if self._at_start:
            self._given = len(self._text) - len(self._text.lstrip())
        piece = self._text[self._given : end]
        self._given = max(self._given, end)
        self._at_start = self._at_start and not piece
        return piece


def _overlap(text: str, stop: str) -> int:
    """Return the length of the longest end of `text` that a stop string begins with."""
    return next((size for size in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:size])), 0)
