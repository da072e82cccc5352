"""Held-out rows that cannot be read, or are too long, and what their messages say to do."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from include.errors import DataError
from jobs.common.heldout import encode_rows, read_rows
from tests.jobs.models import TEMPLATE, byte_tokenizer, conversation, jsonl

ROWS = [conversation("a", "show the pods", "kubectl get pods"), conversation("b", "show it", "get")]


@pytest.mark.remedy("run customize again with refresh: [curate]")
@pytest.mark.parametrize("written", [None, '{"id": 1}\n', "[]\n"])
def test_rows_that_curation_left_out_or_wrote_otherwise_are_curated_anew(tmp_path: Path, written: str | None) -> None:
    before, anew = tmp_path / "curate-1" / "heldout.jsonl", tmp_path / "curate-2" / "heldout.jsonl"
    for path in (before, anew):
        path.parent.mkdir()
    if written is not None:
        before.write_text(written)
    with pytest.raises(DataError, match=r": run customize again with refresh: \[curate\]$"):
        read_rows(before)
    anew.write_text(jsonl(ROWS))
    assert read_rows(anew) == ROWS


@pytest.mark.remedy("raise ….max_tokens to …")
def test_rows_that_are_all_too_long_say_how_many_tokens_the_shortest_needs() -> None:
    tokenizer = byte_tokenizer(TEMPLATE)
    with pytest.raises(DataError, match=r"over merge\.max_tokens, 9: raise merge\.max_tokens to \d+$") as refused:
        encode_rows(tokenizer, ROWS, 9, stage="merge")
    enough = int(re.findall(r"\d+", str(refused.value))[-1])
    assert len(encode_rows(tokenizer, ROWS, enough, stage="merge")) == 1
