"""Wait for what another process does."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def wait_for(condition: Callable[[], T], seconds: float, what: Callable[[], str] | str, every: float = 0.1) -> T:
    """Return the first true value of a condition; `what`, which is waited for, is asked at the end where it is called.

    Raises:
        AssertionError: there was none for so long.
    """
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {seconds:.0f} s for {what if isinstance(what, str) else what()}")
        time.sleep(every)
    return value
