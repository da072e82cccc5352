"""Progress lines: `event key=value …`, readable in a task log and by a program (logfmt)."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

_PLAIN = re.compile(r"""[^\s="]+""")
_FIELD = re.compile(r'(\w[\w.]*)=("(?:[^"\\]|\\.)*"|\S*)')


def format_event(event: str, fields: Mapping[str, Any]) -> str:
    """Return one line: floats to four significant digits, text with blanks in JSON quotes."""
    return " ".join([event, *(f"{key}={_format(value)}" for key, value in fields.items())])


def parse_fields(line: str) -> dict[str, str]:
    """Return the fields of a line that `format_event` wrote, as text."""
    return {key: json.loads(value) if value.startswith('"') else value for key, value in _FIELD.findall(line)}


def _format(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    text = str(value)
    return text if _PLAIN.fullmatch(text) else json.dumps(text, ensure_ascii=False)
