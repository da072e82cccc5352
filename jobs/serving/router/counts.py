"""Counts of one arm's requests as its clients saw them: how they ended, and how long they took."""

from __future__ import annotations

import math
from bisect import bisect_left
from typing import Any

_LOWEST, _HIGHEST, _RATIO = 0.001, 600.0, 1.05

BOUNDS = [_LOWEST * _RATIO**step for step in range(math.ceil(math.log(_HIGHEST / _LOWEST) / math.log(_RATIO)) + 1)]
"""Upper bounds of the buckets in seconds, each 5% above the one before; a last bucket has none."""


class Histogram:
    """Latencies in seconds, counted in the buckets of `BOUNDS`."""

    __slots__ = ("buckets", "seconds")

    def __init__(self) -> None:
        self.buckets: dict[int, int] = {}
        self.seconds = 0.0

    def add(self, seconds: float) -> None:
        bucket = bisect_left(BOUNDS, seconds)
        self.buckets[bucket] = self.buckets.get(bucket, 0) + 1
        self.seconds += seconds

    @property
    def number(self) -> int:
        return sum(self.buckets.values())

    def as_json(self) -> list[tuple[float | None, int]]:
        """Return (upper bound in seconds, number) of each bucket that is not empty, in order; the last has None."""
        return [
            (BOUNDS[bucket] if bucket < len(BOUNDS) else None, number)
            for bucket, number in sorted(self.buckets.items())
        ]


class Counts:
    """One arm's requests.

    Attributes:
        assigned: all of them; those that have neither finished nor are in flight were the client's own mistake, or
            the client went away in time.
        finished: ended with an answer, a failure, or a client that went away when the arm was slow already.
        failed: of these, with an error, an error in the body, too late, or a broken stream.
        rescued: of the failed, answered by the champion in the end, be it the arm itself at the second try.
        empty: of the finished, answered without any text, where the request itself is no cause.
        slow: of the finished, slower than the generation's limits; the time that a client takes to read is left out.
        tokens: of all answers.
        statuses: number of requests by the HTTP status of the arm's answer; 499: the client went away.
        first_token: of streams that were answered.
        total: of all that were answered.
    """

    def __init__(self, release: str) -> None:
        self.release = release
        self.assigned = self.finished = self.failed = self.rescued = 0
        self.empty = self.slow = self.tokens = self.in_flight = 0
        self.statuses: dict[int, int] = {}
        self.first_token = Histogram()
        self.total = Histogram()

    def begin(self) -> None:
        self.assigned += 1
        self.in_flight += 1

    def end(self, status: int) -> None:
        self.in_flight -= 1
        self.statuses[status] = self.statuses.get(status, 0) + 1

    def as_json(self) -> dict[str, Any]:
        return {
            "release": self.release,
            "assigned": self.assigned,
            "finished": self.finished,
            "failed": self.failed,
            "rescued": self.rescued,
            "empty": self.empty,
            "slow": self.slow,
            "tokens": self.tokens,
            "in_flight": self.in_flight,
            "statuses": {str(status): number for status, number in sorted(self.statuses.items())},
            "first_token": self.first_token.as_json(),
            "total": self.total.as_json(),
        }
