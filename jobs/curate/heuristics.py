"""NeMo Curator's heuristic filters, with the bounds of the configuration."""

from __future__ import annotations

import math
import re
import string
from collections.abc import Iterator
from dataclasses import dataclass

from nemo_curator.stages.text.filters.doc_filter import DocumentFilter
from nemo_curator.stages.text.filters.heuristic.repetition.repetition import RepeatedLinesFilter
from nemo_curator.stages.text.filters.heuristic.string import (
    MeanWordLengthFilter,
    NonAlphaNumericFilter,
    SymbolsToWordsFilter,
    WordCountFilter,
)
from nemo_curator.stages.text.utils.constants import ellipsis_marks

from include.specs.curate import Filters

_SYMBOLS = re.compile(r"[^\w\n?!,.]+")
_SYMBOLS_OF_WORDS = ("#", *ellipsis_marks)
_ASCII_LETTERS = (string.ascii_letters + string.digits + "_\n?!,.").encode()


class AnyScriptNonAlphaNumericFilter(NonAlphaNumericFilter):
    """Curator's own counts every letter outside a-z as a symbol, and so removes all Korean text."""

    def score_document(self, text: str) -> float:
        if not text:
            return 1.0
        if text.isascii():
            return len(text.encode().translate(None, _ASCII_LETTERS)) / len(text)
        return sum(map(len, _SYMBOLS.findall(text))) / len(text)


class QuickMeanWordLengthFilter(MeanWordLengthFilter):
    """Curator's own figure, without a loop of its own."""

    def score_document(self, text: str) -> float:
        words = self._word_splitter(text.strip())
        return sum(map(len, words)) / len(words)


class QuickSymbolsToWordsFilter(SymbolsToWordsFilter):
    """Curator's own, which is called only on texts with a symbol: it would examine every word of the others."""

    def score_document(self, text: str) -> float:
        if any(symbol in text for symbol in _SYMBOLS_OF_WORDS) or not text.strip():
            return super().score_document(text)
        return 0.0


@dataclass(frozen=True)
class Heuristic:
    """A filter, the reason that its removals get, and its score and bounds in words."""

    reason: str
    filter: DocumentFilter
    score: str
    bounds: str

    def explain(self, score: float) -> str:
        return f"{self.score} {round(score, 3):g}, allowed {self.bounds}"


def heuristics(filters: Filters) -> Iterator[Heuristic]:
    """Yield the filters that are switched on."""
    low, high = _open(filters.min_words, 0), _open(filters.max_words, math.inf)
    if (low, high) != (0, math.inf):
        yield Heuristic("word_count", WordCountFilter(low, high), "words", f"{low} to {high}")
    low, high = _open(filters.min_mean_word_length, 0), _open(filters.max_mean_word_length, math.inf)
    if (low, high) != (0, math.inf):
        yield Heuristic("word_length", QuickMeanWordLengthFilter(low, high), "mean word length", f"{low:g} to {high:g}")
    if (limit := filters.max_symbol_to_word_ratio) is not None:
        yield Heuristic("symbols", QuickSymbolsToWordsFilter(limit), "symbols a word", f"up to {limit:g}")
    if (limit := filters.max_non_alpha_numeric_ratio) is not None:
        yield Heuristic(
            "non_alpha_numeric", AnyScriptNonAlphaNumericFilter(limit), "share of symbols", f"up to {limit:g}"
        )
    if (limit := filters.min_unique_line_fraction) is not None:
        yield Heuristic("repeated_lines", RepeatedLinesFilter(limit), "share of unique lines", f"from {limit:g}")


def _open(bound: float | None, default: float) -> float:
    return default if bound is None else bound
