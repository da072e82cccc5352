from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from include.events import format_event, parse_fields


def test_reads_like_a_log():
    line = format_event("step", {"step": 10, "loss": 0.123456, "note": "two words", "ok": True})
    assert line == 'step step=10 loss=0.1235 note="two words" ok=True'


@given(st.dictionaries(st.from_regex(r"[a-z][a-z_]{0,8}", fullmatch=True), st.text(max_size=30), max_size=5))
def test_any_text_comes_back_from_its_single_line(fields):
    line = format_event("event", fields)
    assert len(line.split("\n")) == 1
    assert parse_fields(line) == fields
