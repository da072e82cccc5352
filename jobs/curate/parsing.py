"""Parse lines of JSON into conversations: find the columns, and give each row that is not well-formed a reason."""

from __future__ import annotations

import codecs
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from include.errors import DataError
from include.specs.curate import Mapping

Message = dict[str, str]
"""{"role": "system" | "user" | "assistant", "content": text}."""

ROLES = ("system", "user", "assistant")
MAX_NESTING = 100
"""A row nested deeper is not parsed: how deep Python could go depends on its version, and on the caller's stack."""

_SURROGATE = re.compile("[\ud800-\udfff]")
_SHAPES = (("messages",), ("prompt", "completion"), ("input", "output"))


@dataclass(frozen=True)
class Line:
    """One line that is not blank: its place, and its value (`raw` and its `problem` where it is not JSON)."""

    file: str
    number: int
    value: Any
    raw: str | None = None
    problem: str = ""

    @property
    def place(self) -> str:
        return f"{self.file}, line {self.number}"


@dataclass(frozen=True)
class Columns:
    """The columns of a row's request and answer: one column of messages, or one of each."""

    content: tuple[str, ...]
    label: str | None


@dataclass(frozen=True)
class Row:
    """A well-formed row."""

    line: Line
    messages: list[Message]
    label: str | None


@dataclass(frozen=True)
class RemovedRow:
    """A row that is not kept: the reason as a code, and the detail."""

    line: Line
    reason: str
    detail: str


def read_rows(folder: Path, mapping: Mapping, *, where: str) -> list[Row | RemovedRow]:
    """Return every line of a snapshot, as a row or with the reason for its removal.

    Args:
        where: names the snapshot in messages.

    Raises:
        DataError: no row has the expected columns.
    """
    lines = list(read_lines(folder))
    columns = find_columns(lines, mapping, where=where)
    return [parse(line, columns) for line in lines]


def read_held_out(folder: Path, mapping: Mapping) -> list[Row]:
    """Return the rows of a held-out set, which need not have the label column.

    Raises:
        DataError: a row cannot be used; names file and line. An evaluation must not lose rows silently.
    """
    lines = list(read_lines(folder))
    content = find_columns(lines, mapping.model_copy(update={"label": None}), where="held-out set").content
    rows = []
    for line in lines:
        row = parse(line, Columns(content, mapping.label))
        if isinstance(row, RemovedRow):
            raise DataError(f"held-out set: {line.place}: {row.detail}; correct the row, or remove it from the set")
        rows.append(row)
    return rows


def read_lines(folder: Path) -> Iterator[Line]:
    """Yield the lines of a snapshot's `*.jsonl` files, by file name. Byte order marks and blank lines are skipped."""
    for path in sorted(folder.glob("*.jsonl")):
        with path.open("rb") as stream:
            for number, line in enumerate(stream, start=1):
                text = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
                if not text.strip():
                    continue
                try:
                    yield Line(path.name, number, _decode(text))
                except _NotJsonError as error:
                    yield Line(path.name, number, None, text.decode("utf-8", "replace").strip(), str(error))


class _NotJsonError(ValueError):
    """A line is not JSON that curation takes."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        raise _NotJsonError(f"{_shown(twice)} stands there twice")
    return found


def _constant(name: str) -> None:
    raise _NotJsonError(f"not valid JSON ({name} is no number)")


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_constant)


def _decode(line: bytes) -> Any:
    try:
        text = line.decode("utf-8")
        value = _DECODER.decode(text.strip())
    except json.JSONDecodeError as error:
        raise _NotJsonError(f"not valid JSON ({error.msg} at character {error.colno})") from None
    except RecursionError:
        raise _NotJsonError(f"nested deeper than {MAX_NESTING} levels") from None
    except UnicodeDecodeError:
        raise _NotJsonError("not UTF-8") from None
    except _NotJsonError:
        raise
    except ValueError:
        raise _NotJsonError("a number in it has thousands of digits") from None
    if text.count("[") + text.count("{") > MAX_NESTING and _is_deep(value):
        raise _NotJsonError(f"nested deeper than {MAX_NESTING} levels")
    return value


def _is_deep(value: Any) -> bool:
    level = _nests([value])
    for _ in range(MAX_NESTING):
        level = [nest for part in level for nest in _nests(part.values() if isinstance(part, dict) else part)]
        if not level:
            return False
    return True


def _nests(values: Iterable[Any]) -> list[dict[str, Any] | list[Any]]:
    return [value for value in values if isinstance(value, dict | list)]


def find_columns(lines: Iterable[Line], mapping: Mapping, *, where: str) -> Columns:
    """Return the columns that `mapping` names, or else the known shape that most rows have.

    Raises:
        DataError: no row has them; the message names the columns that there are.
    """
    found: Counter[str] = Counter()
    shapes: Counter[tuple[str, ...]] = Counter()
    mapped = _mapped(mapping)
    wanted: list[tuple[str, ...]] = [mapped] if mapped else list(_SHAPES)
    for line in lines:
        if isinstance(line.value, dict):
            found.update(line.value.keys())
            shapes.update(shape for shape in wanted if all(column in line.value for column in shape))
    columns = ", ".join(_shown(name) for name, _ in found.most_common(12)) or "none: no line is a JSON object"
    if not shapes:
        shown = " or ".join(" and ".join(shape) for shape in wanted)
        raise DataError(
            f"{where}: no row has {shown} (columns found: {columns}); set curate.mapping.prompt and "
            "curate.mapping.completion, or curate.mapping.messages, to the columns' names"
        )
    if mapping.label is not None and mapping.label not in found:
        raise DataError(
            f"{where}: no row has the label column {mapping.label} (columns found: {columns}); correct "
            "curate.mapping.label, or leave it out"
        )
    best = max(wanted, key=lambda shape: shapes[shape])
    return Columns(best, mapping.label)


def _mapped(mapping: Mapping) -> tuple[str, ...] | None:
    if mapping.messages is not None:
        return (mapping.messages,)
    if mapping.prompt is not None and mapping.completion is not None:
        return (mapping.prompt, mapping.completion)
    return None


def parse(line: Line, columns: Columns) -> Row | RemovedRow:
    """Return the row on a line, or the reason why there is none."""
    if line.raw is not None:
        return RemovedRow(line, "broken_json", line.problem)
    if not isinstance(line.value, dict):
        return RemovedRow(line, "not_an_object", f"{_kind(line.value)}, not an object")
    missing = [column for column in columns.content if column not in line.value]
    if missing:
        present = ", ".join(_shown(name) for name in list(line.value)[:4]) or "nothing"
        return RemovedRow(line, "missing_column", f"has no {' and no '.join(missing)}, but {present}")
    if len(columns.content) == 1:
        messages, problem = _conversation(line.value[columns.content[0]])
        if problem:
            return RemovedRow(line, "bad_messages", f"{columns.content[0]}: {problem}")
    else:
        for column in columns.content:
            if not isinstance(line.value[column], str):
                return RemovedRow(line, "wrong_type", f"{column} is {_kind(line.value[column])}, not text")
        prompt, completion = (line.value[column] for column in columns.content)
        messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": completion}]
    label = line.value.get(columns.label) if columns.label else None
    if label is not None and not isinstance(label, str | int | bool):
        return RemovedRow(line, "wrong_type", f"{columns.label} is {_kind(label)}, not a label")
    if isinstance(label, str) and _SURROGATE.search(label):
        return RemovedRow(line, "wrong_type", f"{columns.label} holds half a character (a lone surrogate)")
    return Row(line, messages, None if label is None else str(label))


def _conversation(value: Any) -> tuple[list[Message], str | None]:
    if not isinstance(value, list) or not value:
        return [], f"{_kind(value)}, not a list of messages" if not isinstance(value, list) else "an empty list"
    messages = []
    for position, message in enumerate(value):
        if not isinstance(message, dict) or message.get("role") not in ROLES:
            return [], f"message {position} has no role of {', '.join(ROLES)}"
        if not isinstance(message.get("content"), str):
            return [], f"message {position} has {_kind(message.get('content'))} as its content, not text"
        messages.append({"role": message["role"], "content": message["content"]})
    return messages, _order_problem([message["role"] for message in messages])


def _order_problem(roles: list[str]) -> str | None:
    """Return what is wrong with the order of turns (system or not, then user and assistant in turn), or None."""
    start = int(roles[0] == "system")
    for position, role in enumerate(roles[start:], start=start):
        turn = "assistant" if (position - start) % 2 else "user"
        if role != turn:
            return f"message {position} is the {role}'s, where it is the {turn}'s turn"
    return None if roles[-1] == "assistant" else "the last message is not the assistant's"


def _shown(name: str) -> str:
    """Return a column's name, shortened and encodable for a log."""
    return name[:40].encode("utf-8", "backslashreplace").decode()


def _kind(value: Any) -> str:
    kinds = {dict: "an object", list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number"}
    return kinds.get(type(value), "null")
