"""The service's log: lines `event key=value` on standard output."""

from __future__ import annotations

from typing import Any

from include.events import format_event


def log(event: str, **fields: Any) -> None:
    """Write one line, at once."""
    print(format_event(event, fields), flush=True)
