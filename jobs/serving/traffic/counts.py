"""Counts of the answers that clients got."""

from __future__ import annotations

import time
from collections import Counter, deque
from typing import Any

from jobs.serving.traffic.client import Answer
from jobs.serving.traffic.requests import Request

RECENT = 5000
"""So many of the newest answers give the latency quantiles."""

QUANTILES = (0.5, 0.95, 0.99)


class Counts:
    """Counts since the start.

    An answer that says "no such model" or "not available" counts as `unavailable` until the first sound answer has
    come, and as a failure from then on.
    """

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._sent: Counter[str] = Counter()
        self._answered = 0
        self._empty = 0
        self._unavailable = 0
        self._shed = 0
        self._failed: Counter[str] = Counter()
        self._total: deque[float] = deque(maxlen=RECENT)
        self._first_token: deque[float] = deque(maxlen=RECENT)
        self.last_failure = ""

    def sent(self, request: Request) -> None:
        self._sent[request.form] += 1

    def shed(self) -> None:
        """Count an arrival that was not sent, since too many requests are in flight."""
        self._shed += 1

    def ended(self, request: Request, answer: Answer) -> None:
        if answer.failure is None:
            self._answered += 1
            self._empty += not answer.text.strip()
            self._total.append(answer.total)
            if answer.first_token is not None:
                self._first_token.append(answer.first_token)
        elif answer.unavailable and not self._answered:
            self._unavailable += 1
        else:
            self._failed[answer.failure] += 1
            self.last_failure = f"{request.form}: {answer.failure}: {answer.detail}"

    @property
    def in_flight(self) -> int:
        return self._sent.total() - self._answered - self._unavailable - self._failed.total()

    def as_dict(self) -> dict[str, Any]:
        """Return the counts as JSON values; times in seconds."""
        return {
            "seconds": round(time.monotonic() - self._began, 3),
            "sent": self._sent.total(),
            "answered": self._answered,
            "failed": self._failed.total(),
            "unavailable": self._unavailable,
            "empty": self._empty,
            "shed": self._shed,
            "in_flight": self.in_flight,
            "failures": dict(self._failed),
            "forms": dict(self._sent),
            "first_token": _quantiles(self._first_token),
            "total": _quantiles(self._total),
            "last_failure": self.last_failure,
        }


def _quantiles(seconds: deque[float]) -> dict[str, float]:
    ordered = sorted(seconds)
    return {f"p{q * 100:g}": round(ordered[int(q * (len(ordered) - 1))], 6) for q in QUANTILES} if ordered else {}
