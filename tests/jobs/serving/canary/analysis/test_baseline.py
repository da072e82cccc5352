"""The champion's times become a limit: only its own since the begin, over all its generations, and then no more."""

from __future__ import annotations

import asyncio
from typing import Any

from include.release.rollouts import CanaryPolicy
from jobs.serving.canary.analysis.baseline import Baseline, slow_seconds
from jobs.serving.router.counts import BOUNDS, Histogram


class Router:
    """What the router would answer."""

    def __init__(self) -> None:
        self.boot = "b1"
        self.generations: list[dict[str, Any]] = []

    async def counts(self, _target: str) -> dict[str, Any]:
        return {"boot": self.boot, "generations": self.generations}


def part(number: int, weight: float, answers: int, seconds: float = 0.01, release: str = "v1") -> dict[str, Any]:
    histogram = Histogram()
    for _ in range(answers):
        histogram.add(seconds)
    champion = {"release": release, "finished": answers + 1, "failed": 1, "first_token": []}
    return {"generation": number, "weight": weight, "champion": {**champion, "total": histogram.as_json()}}


def test_the_times_add_up_over_steps_and_boots_until_they_suffice_and_are_frozen_then():
    router = Router()
    baseline = Baseline(router, "kubectl", "v1", CanaryPolicy(baseline_requests=90), ("b1", 3))
    router.generations = [part(3, 0.0, 50), part(4, 0.0, 20), part(5, 0.1, 20), part(5, 0.0, 20, release="v0")]
    assert not asyncio.run(baseline.update())
    assert not asyncio.run(baseline.update())
    assert (baseline.answers, baseline.is_known) == (40, False)
    router.boot, router.generations = "b2", [part(1, 0.1, 50, seconds=0.1)]
    assert asyncio.run(baseline.update())
    bucket = next(bound for bound in BOUNDS if bound >= 0.1)
    assert (baseline.answers, baseline.limits.total) == (90, round(1.25 * bucket, 6))
    router.generations = [part(1, 0.1, 500, seconds=5.0)]
    assert not asyncio.run(baseline.update())
    assert baseline.limits.total == round(1.25 * bucket, 6)


def test_the_limit_is_the_routers_own_quantile_with_its_tolerance():
    histogram = Histogram()
    for number in range(100):
        histogram.add(0.010 if number < 94 else 0.100)
    few = Histogram()
    few.add(1.0)
    limits = slow_seconds(
        {"total": histogram.as_json(), "first_token": few.as_json()}, CanaryPolicy(latency_tolerance=1.5)
    )
    assert limits.first_token is None
    bucket = next(bound for bound in BOUNDS if bound >= 0.100)
    assert limits.total == round(1.5 * bucket, 6)


def test_times_beyond_what_the_router_can_count_set_no_limit():
    histogram = Histogram()
    for _ in range(50):
        histogram.add(1e6)
    assert slow_seconds({"total": histogram.as_json(), "first_token": []}, CanaryPolicy()).total is None
