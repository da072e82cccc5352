"""What is quicker here than in NeMo Curator gives what Curator gives."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nemo_curator.stages.text.filters.heuristic.string import MeanWordLengthFilter, SymbolsToWordsFilter
from nemo_curator.stages.text.modifiers.string.newline_normalizer import NewlineNormalizer
from nemo_curator.stages.text.modifiers.unicode.unicode_reformatter import UnicodeReformatter

from jobs.curate.heuristics import QuickMeanWordLengthFilter, QuickSymbolsToWordsFilter
from jobs.curate.normalise import QuickNewlineNormalizer, QuickUnicodeReformatter

TEXTS = st.lists(
    st.one_of(
        st.sampled_from(
            ["#", "##a", "...", "[…]", "…", "\n\n\n\n", "\r\n\r\n\r\n", "\r", "\t", "&amp;", "\x1b[31m", "한글"]
        ),
        st.text(st.characters(max_codepoint=0x7F), max_size=12),
        st.text(max_size=6),
    ),
    max_size=12,
).map(" ".join)
SETTINGS = {"unescape_html": False, "fix_line_breaks": True, "normalization": "NFC", "explain": False}


@given(TEXTS)
def test_texts_are_mended_as_by_curator(text: str) -> None:
    assert QuickUnicodeReformatter(**SETTINGS).modify_document(text) == UnicodeReformatter(**SETTINGS).modify_document(
        text
    )
    assert QuickNewlineNormalizer().modify_document(text) == NewlineNormalizer().modify_document(text)


@given(TEXTS.filter(str.strip))
def test_scores_are_those_of_curator(text: str) -> None:
    assert QuickSymbolsToWordsFilter(0.5).score_document(text) == SymbolsToWordsFilter(0.5).score_document(text)
    assert QuickMeanWordLengthFilter(1, 30).score_document(text) == pytest.approx(
        MeanWordLengthFilter(1, 30).score_document(text)
    )
