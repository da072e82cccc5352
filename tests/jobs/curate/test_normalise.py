"""Texts are mended once, and then stay."""

from __future__ import annotations

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.curate.normalise import normalise
from jobs.curate.pipeline import as_batch


def mended(*texts: str) -> list[str]:
    frame = pd.DataFrame({"messages": [[{"role": "user", "content": text}] for text in texts]})
    return [messages[0]["content"] for messages in normalise().process(as_batch(frame)).to_pandas()["messages"]]


@given(st.lists(st.text() | st.text("aÃ©â€™\u0080\u00a0\x1b[0m\r\n\t &;", max_size=12), min_size=1, max_size=20))
def test_what_was_normalised_stays(texts: list[str]) -> None:
    once = mended(*texts)
    assert mended(*once) == once


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("  a\r\nb\rc\u2028d ", "a\nb\nc\nd"),
        ("a\n\n\n\nb", "a\n\nb"),
        ("cafe\u0301", "café"),
        ("caf\u00c3\u00a9 and more", "café and more"),
        ("\x1b[31mred\x1b[0m\x00", "red"),
        ("a \ud800 b", "a \ufffd b"),
        ("\x80\r¬ß", "€\n§"),
        ("grep &lt;b&gt;", "grep &lt;b&gt;"),
    ],
)
def test_texts_are_mended(text: str, found: str) -> None:
    assert mended(text) == [found]
