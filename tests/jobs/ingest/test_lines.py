"""Any bytes are either JSON lines, counted, or refused by name, however they come."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from include.errors import DataError
from jobs.ingest.lines import LineChecker

GOOD = b'{"prompt": "show the pods", "completion": "kubectl get pods"}\n'
LINE = st.one_of(
    st.binary(max_size=30),
    st.text(max_size=20).map(str.encode),
    st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=5) | st.none(), max_size=3).map(
        lambda row: json.dumps(row).encode()
    ),
)
DATA = st.lists(LINE, max_size=8).flatmap(
    lambda parts: st.sampled_from([b"\n", b"\r\n"]).map(lambda end: end.join(parts))
)


def verdict(chunks: list[bytes], max_row_bytes: int = 1024) -> int | DataError:
    checker = LineChecker("a.jsonl", max_row_bytes=max_row_bytes)
    try:
        for chunk in chunks:
            checker.feed(chunk)
        checker.finish()
    except DataError as error:
        return error
    return checker.rows


@given(DATA)
def test_any_bytes_are_counted_or_refused_by_name(data: bytes) -> None:
    found = verdict([data] if data else [])
    if isinstance(found, DataError):
        assert re.match(r"a\.jsonl(, line \d+)?: ", str(found))
        place = re.match(r"a\.jsonl, line (\d+)", str(found))
        assert place is None or 1 <= int(place[1]) <= data.count(b"\n") + 1
    else:
        assert found == sum(bool(line.strip()) for line in data.split(b"\n"))
        assert any(line.strip().removeprefix(b"\xef\xbb\xbf").startswith(b"{") for line in data.split(b"\n"))


@given(DATA.filter(bool), st.integers(8, 40))
def test_where_the_chunks_end_makes_no_difference(data: bytes, size: int) -> None:
    whole = verdict([data])
    parts = verdict([data[start : start + size] for start in range(0, len(data), size)])
    assert type(whole) is type(parts)
    assert isinstance(whole, DataError) or whole == parts


@pytest.mark.remedy("remove or split the row, or raise ingest.max_row_bytes")
def test_a_row_that_is_too_long_is_refused_with_its_place() -> None:
    data = [GOOD + b'{"prompt": "' + b"x" * 2000 + b'"}\n']
    refused = str(verdict(data))
    assert refused.startswith("a.jsonl, line 2: longer than ingest.max_row_bytes (1024)")
    assert refused.endswith("remove or split the row, or raise ingest.max_row_bytes")
    assert verdict(data, max_row_bytes=2048) == 2
    assert verdict([GOOD]) == 1


def test_a_last_row_that_is_only_unwieldy_was_not_cut_off() -> None:
    deep = b"[" * 100_000 + b"]" * 100_000
    checker = LineChecker("a.jsonl", max_row_bytes=1_000_000)
    checker.feed(b'{"n": 1}\n{"n": ' + deep + b"}")
    checker.finish()
    assert checker.rows == 2
