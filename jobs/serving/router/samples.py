"""The latest answers, in memory, for the controller to judge."""

from __future__ import annotations

from collections import deque
from itertools import islice
from typing import Any

MAX_SAMPLES = 20_000
MAX_CHARACTERS = 64 * 1024 * 1024
MAX_REPLY = 2_000
MAX_REPLY_CHARACTERS = 4 * 1024 * 1024

_SAMPLE, _MESSAGE = 1_000, 300
"""Size of a sample, and of each message in it, without the texts, in characters."""


class Samples:
    """A ring of answers, each with a number that only grows; the oldest are dropped."""

    def __init__(self, max_samples: int = MAX_SAMPLES, max_characters: int = MAX_CHARACTERS) -> None:
        self._ring: deque[tuple[int, dict[str, Any]]] = deque()
        self._max_samples = max_samples
        self._max_characters = max_characters
        self._characters = 0
        self._last = 0

    def add(self, sample: dict[str, Any]) -> None:
        """Keep a sample under the next `seq`."""
        self._last += 1
        size = _characters(sample)
        self._ring.append((size, {"seq": self._last, **sample}))
        self._characters += size
        while len(self._ring) > self._max_samples or self._characters > self._max_characters:
            dropped, _ = self._ring.popleft()
            self._characters -= dropped

    def after(
        self, seq: int, at_most: int = MAX_REPLY, max_characters: int = MAX_REPLY_CHARACTERS
    ) -> tuple[list[dict[str, Any]], int]:
        """Return the next samples after number `seq`, oldest first, and how many in between were dropped already.

        The first one is returned whatever its length.
        """
        oldest = self._last - len(self._ring) + 1
        start = max(0, seq + 1 - oldest)
        found: list[dict[str, Any]] = []
        for size, sample in islice(self._ring, start, start + at_most):
            max_characters -= size
            if found and max_characters < 0:
                break
            found.append(sample)
        return found, max(0, oldest - seq - 1)


def _characters(sample: dict[str, Any]) -> int:
    texts = [sample["prompt"] or "", sample["answer"] or ""]
    messages = sample["messages"] or ()
    return _SAMPLE + sum(map(len, texts)) + sum(_MESSAGE + len(message["content"]) for message in messages)
