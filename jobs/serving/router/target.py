"""A target: assigns each request to an arm, and counts how the request ended."""

from __future__ import annotations

import random
import time
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Literal

from jobs.serving.log import log
from jobs.serving.router.counts import Counts
from jobs.serving.router.errors import RequestError
from jobs.serving.router.generation import Generation
from jobs.serving.router.lease import Lease
from jobs.serving.router.routes import Route
from jobs.serving.router.samples import Samples

Arm = Literal["champion", "canary"]

MAX_PERIODS = 64
REJECTED = 400
CLIENT_GONE = 499


class Period:
    """A time in which a target's route and the weight in force were the same; its requests are counted together.

    When the lease lapses, a new period of the same generation begins, with weight 0 and without samples.
    """

    def __init__(self, route: Route, weight: float, sample: float) -> None:
        self.generation = route.generation
        self.weight = weight
        self.sample = sample
        self.since = datetime.now(UTC)
        self.slow = route.slow_seconds
        self.champion = Counts(route.champion) if route.champion else None
        self.canary = Counts(route.canary) if route.canary else None

    def as_json(self) -> dict[str, Any]:
        return {
            "generation": self.generation,
            "weight": self.weight,
            "since": self.since.isoformat(timespec="milliseconds"),
            "slow_seconds": self.slow.model_dump(),
            "champion": self.champion.as_json() if self.champion else None,
            "canary": self.canary.as_json() if self.canary else None,
        }


class Target:
    """A public model name with its route in force.

    Attributes:
        totals: counts since the router's start by (arm, release).
        samples: answers to be judged.
    """

    def __init__(
        self,
        name: str,
        route: Route,
        lease: Lease,
        draw: Callable[[], float] = random.random,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self.clock = clock
        self.samples = Samples()
        self.totals: dict[tuple[Arm, str], Counts] = {}
        self._draw = draw
        self._lease = lease
        self._periods: deque[Period] = deque(maxlen=MAX_PERIODS)
        self.follow(route)

    def follow(self, route: Route) -> None:
        """Put a route in force: every request from now on is assigned by it."""
        self.route = route
        # A lease that has lapsed in between is another term: what was set under it is not in force again.
        self._term = self._lease.term if route.holder and route.holder == self._lease.holder else 0
        self._periods.append(Period(route, route.weight if self._term else 0.0, route.sample))

    @property
    def period(self) -> Period:
        """The current period; another one begins here where the lease has lapsed."""
        current = self._periods[-1]
        if current.weight and not (self._lease.term == self._term and self._lease.holder):
            log("lease_lapsed", target=self.name, generation=current.generation, weight=current.weight)
            current = Period(self.route, 0.0, 0.0)
            self._periods.append(current)
        return current

    def assign(self, generation: Generation, *, stream: bool) -> Assignment:
        """Draw the arm for a request, independently of all other requests.

        Raises:
            RequestError: 503, the target has no champion.
        """
        period = self.period
        canary = period.weight > 0 and self._draw() < period.weight
        arm: Arm = "canary" if canary else "champion"
        counts = period.canary if canary else period.champion
        if counts is None:
            raise RequestError(503, f"model {self.name!r} has no live release yet: try again later", retry_after=5)
        sampled = generation.judged and self._draw() < period.sample
        return Assignment(self, period, arm, counts, generation, stream=stream, sampled=sampled)

    def state(self) -> dict[str, Any]:
        weight = self.period.weight
        return {
            **self.route.model_dump(include={"generation", "champion", "canary", "sample", "slow_seconds"}),
            "weight": weight,
            "lease": {"holder": self._lease.holder, "expires_in": self._lease.expires_in},
        }

    def counts(self) -> list[dict[str, Any]]:
        """Return the counts of each period, oldest first."""
        assert self.period  # begins another where the lease has lapsed
        return [period.as_json() for period in self._periods]


class Assignment:
    """One request with its arm, until it ends in one of four ways: answered, failed, rejected, or its client gone.

    After `fall_back` the champion is asked in the arm's place, and `answered` means that it rescued the request. From
    each `streamed` to the next `client_ready` the client reads, and the arm's clock is stopped.
    """

    __slots__ = (
        "_counts", "_failure", "_first_token", "_generation", "_paused", "_period", "_sampled", "_started", "_stream",
        "_target", "_texts", "arm", "ended", "release",
    )  # fmt: skip

    def __init__(
        self,
        target: Target,
        period: Period,
        arm: Arm,
        counts: Counts,
        generation: Generation,
        *,
        stream: bool,
        sampled: bool,
    ) -> None:
        self.arm = arm
        self.release = counts.release
        self.ended = False
        self._target = target
        self._period = period
        self._generation = generation
        self._stream = stream
        self._sampled = sampled
        self._texts: list[str] = []
        self._failure = 0
        self._first_token: float | None = None
        total = target.totals.get((arm, counts.release))
        if total is None:
            total = target.totals[arm, counts.release] = Counts(counts.release)
        self._counts = (counts, total)
        counts.begin()
        total.begin()
        self._started = target.clock()
        self._paused: float | None = None

    def streamed(self, text: str) -> None:
        """Note a piece of a stream."""
        self._paused = self._target.clock()
        if self._first_token is None and text:
            self._first_token = self._paused - self._started
        self._texts.append(text)

    def client_ready(self) -> None:
        """Note that the client has taken the piece and wants the next one."""
        if self._paused is not None:
            self._started += self._target.clock() - self._paused
            self._paused = None

    def fall_back(self, status: int) -> None:
        """Note that the arm failed, and that the champion is asked, which may be the arm itself."""
        self._failure = status

    def answered(self, text: str, tokens: int, finish_reason: str) -> None:
        """Count an answer; `text` is all of it, or what came after the last piece of a stream."""
        if self._failure:
            self._fail(self._failure, rescued=True)
            return
        seconds = self._seconds
        self._texts.append(text)
        answer = "".join(self._texts)
        empty = self._generation.judged and not answer.strip()
        slow = self._is_slow(self._first_token)
        for counts in self._counts:
            counts.end(200)
            counts.finished += 1
            counts.tokens += tokens
            counts.empty += empty
            counts.slow += slow
            counts.total.add(seconds)
            if self._first_token is not None:
                counts.first_token.add(self._first_token)
        self._end(answer, failed=False, empty=empty, finish_reason=finish_reason)

    def failed(self, status: int) -> None:
        """Count a request without an answer."""
        self._fail(self._failure or status, rescued=False)

    def rejected(self, status: int = REJECTED) -> None:
        """Count a request that was the client's mistake, which is no evidence on the arm."""
        for counts in self._counts:
            counts.end(status)
        self.ended = True

    def client_gone(self) -> None:
        """Count a request whose client went away; that the arm had failed or was slow by then counts all the same."""
        if self._failure and self._failure != REJECTED:
            self._fail(self._failure, rescued=False)
            return
        first_token = self._seconds if self._stream and self._first_token is None else self._first_token
        # Only the champion's answer would have shown whether the request was the client's mistake.
        if not self._failure and self._is_slow(first_token):
            for counts in self._counts:
                counts.finished += 1
                counts.slow += 1
        self.rejected(CLIENT_GONE)

    @property
    def _seconds(self) -> float:
        return (self._target.clock() if self._paused is None else self._paused) - self._started

    def _is_slow(self, first_token: float | None) -> bool:
        slow = self._period.slow
        return _exceeds(first_token, slow.first_token) or _exceeds(self._seconds, slow.total)

    def _fail(self, status: int, *, rescued: bool) -> None:
        for counts in self._counts:
            counts.end(status)
            counts.finished += 1
            counts.failed += 1
            counts.rescued += rescued
        self._end(None, failed=True, empty=False, finish_reason="")

    def _end(self, answer: str | None, *, failed: bool, empty: bool, finish_reason: str) -> None:
        self.ended = True
        if not self._sampled:
            return
        self._target.samples.add(
            {
                "generation": self._period.generation,
                "arm": self.arm,
                "release": self.release,
                "prompt": self._generation.prompt,
                "messages": self._generation.messages,
                "answer": answer,
                "failed": failed,
                "empty": empty,
                "finish_reason": finish_reason,
                "greedy": self._generation.greedy,
            }
        )


def _exceeds(seconds: float | None, limit: float | None) -> bool:
    return seconds is not None and limit is not None and seconds > limit
