"""The text writer by itself, with a real tokenizer."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from jobs.serving.triton.writer import Writer


@pytest.fixture(scope="module")
def tokenizer(engine_folder: Path) -> Tokenizer:
    return Tokenizer.from_file(str(engine_folder / "tokenizer.json"))


def write(tokenizer: Tokenizer, ids: list[int], stops: list[str], strip: bool) -> list[str]:
    writer = Writer(lambda part: tokenizer.decode(part, skip_special_tokens=False), stops, strip=strip)
    pieces = [writer.feed(token) for token in ids]
    return [*pieces, writer.finish()]


@settings(max_examples=200)
@given(ids=st.lists(st.integers(6, 399), max_size=30), strip=st.booleans())
@example(ids=[222, 222, 6], strip=True).via("white space in two tokens before the first letter")
def test_pieces_of_any_tokens_make_their_text(tokenizer: Tokenizer, ids: list[int], strip: bool) -> None:
    whole = tokenizer.decode(ids, skip_special_tokens=False)
    assert "".join(write(tokenizer, ids, [], strip)) == (whole.strip() if strip else whole)


@settings(max_examples=200)
@given(text=st.text(st.sampled_from("가힣🙂é a\nb"), max_size=12))
def test_no_piece_holds_half_a_character(tokenizer: Tokenizer, text: str) -> None:
    ids = [tokenizer.token_to_id(character) for character in map(byte_character, text.encode())]
    pieces = write(tokenizer, ids, [], strip=False)
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)


@settings(max_examples=300)
@given(
    text=st.text(st.sampled_from("가나ab "), max_size=20),
    stops=st.lists(st.text(st.sampled_from("가나ab "), min_size=1, max_size=4), min_size=1, max_size=3),
)
def test_a_stop_string_never_leaks(tokenizer: Tokenizer, text: str, stops: list[str]) -> None:
    ids = [tokenizer.token_to_id(character) for character in map(byte_character, text.encode())]
    found = [text.index(stop) for stop in stops if stop in text]
    written = "".join(write(tokenizer, ids, stops, strip=False))
    if not found:
        assert written == text
    else:
        assert not any(stop in written for stop in stops)
        assert text.startswith(written)


def byte_character(byte: int) -> str:
    """Return the character of a byte in a byte-level BPE (GPT-2's table)."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    return chr(byte) if byte in plain else chr(256 + [other for other in range(256) if other not in plain].index(byte))
