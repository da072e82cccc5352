"""The log of a service: lines on stdout, and of what can happen with every request at most one a second.

A line that cannot be written is dropped: a full disk must not fail a request, end a task, or have a change reported as
refused that is in force already.
"""

from __future__ import annotations

import contextlib
import time
import traceback
from typing import Any

from include.events import format_event


def log(event: str, **fields: Any) -> None:
    """Write `event key=value …`, at once."""
    with contextlib.suppress(OSError):
        print(format_event(event, fields), flush=True)


def log_trace() -> None:
    """Write the current exception with its stack to stderr."""
    with contextlib.suppress(OSError):
        traceback.print_exc()


class ThrottledLog:
    """Logs one line a second for each event and key; `left_out` counts those dropped since the last."""

    def __init__(self) -> None:
        self._last: dict[tuple[str, str], float] = {}
        self._left_out: dict[tuple[str, str], int] = {}

    def __call__(self, event: str, key: str, **fields: Any) -> None:
        now = time.monotonic()
        line = event, key
        if now - self._last.get(line, float("-inf")) < 1:
            self._left_out[line] = self._left_out.get(line, 0) + 1
            return
        self._last[line] = now
        log(event, **fields, left_out=self._left_out.pop(line, 0))
