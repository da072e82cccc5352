"""Which columns are taken, and what is said of rows that do not have them."""

from __future__ import annotations

import json
import re
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from include.errors import DataError
from include.specs.curate import Mapping
from jobs.curate.parsing import MAX_NESTING, Columns, Line, Row, find_columns, parse, read_lines

PAIR = Columns(("prompt", "completion"), None)
CHAT = Columns(("messages",), None)


def lines(*values: object) -> list[Line]:
    return [Line("data.jsonl", number, value) for number, value in enumerate(values, start=1)]


@pytest.mark.parametrize("shape", [("prompt", "completion"), ("input", "output"), ("messages",)])
def test_the_shape_that_most_rows_have_is_found(shape):
    rows = lines({"other": 1}, 5, dict.fromkeys(shape, "a"), dict.fromkeys(shape, "b"), {"prompt": 1, "completion": 2})
    assert find_columns(rows, Mapping(), where="x").content == shape


def test_named_columns_are_taken():
    mapping = Mapping(prompt="question", completion="reply", label="topic")
    found = find_columns(lines({"question": "q", "reply": "r", "prompt": "p", "topic": "t"}), mapping, where="x")
    assert found == Columns(("question", "reply"), "topic")


@pytest.mark.remedy(
    "set curate.mapping.prompt and curate.mapping.completion, or curate.mapping.messages, to the columns' names",
    "correct curate.mapping.label, or leave it out",
)
@pytest.mark.parametrize(
    ("row", "mapping", "says", "keys"),
    [
        ({"question": "q", "reply": "r"}, {"prompt": "ask", "completion": "reply"}, "no row has ask and reply",
         [["prompt", "completion"]]),
        ({"chat": []}, {}, "no row has .*or curate.mapping.messages", [["messages"]]),
        ({"prompt": "q", "completion": "r", "kind": "k"}, {"label": "topic"}, "no row has the label column topic",
         [["label"], []]),
    ],
)  # fmt: skip
def test_columns_that_no_row_has_are_named_with_those_that_it_has(row, mapping, says, keys):
    with pytest.raises(DataError, match=says) as refused:
        find_columns(lines(row), Mapping(**mapping), where="data set")
    columns = re.search(r"columns found: ([^)]*)", str(refused.value))[1].split(", ")
    for followed in keys:
        assert all(f"curate.mapping.{key}" in str(refused.value) for key in followed)
        named = Mapping(**dict(zip(followed, columns[-len(followed) :], strict=False)))
        found = find_columns(lines(row), named, where="data set")
        assert {*found.content, found.label} <= {*columns, None}


@pytest.mark.parametrize("mapping", [{"prompt": "a"}, {"messages": "m", "prompt": "a", "completion": "b"}])
def test_half_a_mapping_is_refused(mapping):
    with pytest.raises(ValidationError):
        Mapping(**mapping)


def test_a_conversation_keeps_its_turns_and_nothing_else():
    messages = [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "u", "name": "x"},
        {"role": "assistant", "content": "a"},
    ]
    row = parse(Line("data.jsonl", 1, {"messages": messages, "topic": 3}), Columns(("messages",), "topic"))
    assert isinstance(row, Row)
    assert [set(message) for message in row.messages] == [{"role", "content"}] * 3
    assert row.label == "3"


def test_lines_keep_their_numbers_over_blank_and_broken_ones(tmp_path):
    (tmp_path / "b.jsonl").write_bytes(b'{"n": 3}')
    nested = b"[" * 100_000
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"n": 1}\r\n\r\n{"n": \n' + nested + b"\n" + b'{"n": 2}\n')
    found = list(read_lines(tmp_path))
    assert [(line.file, line.number, line.raw is None) for line in found] == [
        ("a.jsonl", 1, True),
        ("a.jsonl", 3, False),
        ("a.jsonl", 4, False),
        ("a.jsonl", 5, True),
        ("b.jsonl", 1, True),
    ]
    assert json.dumps(found[0].value) == '{"n": 1}'


VALUE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)
LINE = st.one_of(
    st.binary(max_size=40),
    VALUE.map(lambda value: json.dumps(value).encode()),
    VALUE.map(lambda value: json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")),
    st.integers(1, 30).map(lambda part: b'{"a": 1, "b": [2, "c"], "a": NaN}'[:part]),
).filter(lambda line: b"\n" not in line)


@given(st.lists(LINE, max_size=8))
def test_every_line_is_a_value_that_can_be_written_again_or_has_its_problem_named(found):
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "a.jsonl").write_bytes(b"\n".join(found))
        read = list(read_lines(Path(folder)))
    assert [line.number for line in read] == [
        number for number, line in enumerate(found, 1) if line.removeprefix(b"\xef\xbb\xbf" * (number == 1)).strip()
    ]
    for line in read:
        if line.raw is None:
            assert json.loads(json.dumps(line.value)) == line.value == json.loads(found[line.number - 1])
        else:
            assert line.problem


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (b'{"a": 1, "b": {"a": 2, "a": 3}}', "a stands there twice"),
        (b'{"\\ud800": 1, "\\ud800": 2}', "\\ud800 stands there twice"),
        (b"[" * (MAX_NESTING + 1) + b"]" * (MAX_NESTING + 1), "nested deeper than 100 levels"),
        (b'"\xff"', "not UTF-8"),
    ],
)
def test_what_is_wrong_with_a_line_is_said(tmp_path, text, problem):
    (tmp_path / "a.jsonl").write_bytes(b"[" * MAX_NESTING + b"]" * MAX_NESTING + b"\n" + text)
    nested, line = read_lines(tmp_path)
    assert nested.raw is None
    assert line.problem == problem
