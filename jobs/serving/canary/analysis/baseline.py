"""The champion's own answer times, from which the limit of a slow answer is frozen once."""

from __future__ import annotations

from collections import Counter
from typing import Any

from include.release.rollouts import CanaryPolicy
from jobs.serving.canary.analysis.observation import is_after
from jobs.serving.canary.traffic.interface import TrafficRouter
from jobs.serving.router.routes import SlowSeconds

Buckets = list[tuple[float | None, int]]
"""(upper bound in seconds, number), in order; the bound is None for the last."""

_LEAST_TIMES = 20
"""No quantile is estimated from fewer answers."""


class Baseline:
    """The champion's times since a position of the router, whatever share of the traffic it had.

    Attributes:
        limits: seconds beyond which an answer counts as slow; frozen once they have a `total`.
    """

    def __init__(
        self, router: TrafficRouter, target: str, champion: str, policy: CanaryPolicy, since: tuple[str, int]
    ) -> None:
        """
        Args:
            champion: the release's name.
            since: boot and generation of the router; later ones count.
        """
        self.limits = SlowSeconds()
        self._router = router
        self._target = target
        self._champion = champion
        self._policy = policy
        self._since = since
        self._known: dict[tuple[str, int, float], dict[str, Any]] = {}

    @property
    def is_known(self) -> bool:
        return self.limits.total is not None

    @property
    def answers(self) -> int:
        """Number of the champion's answers so far."""
        return sum(counts["finished"] - counts["failed"] for counts in self._known.values())

    async def update(self) -> bool:
        """Read the router's counts until the limits are known; return whether this call made them known.

        Raises:
            RouterError: the router does not answer.
        """
        if self.is_known:
            return False
        counts = await self._router.counts(self._target)
        boot = counts["boot"]
        for part in counts["generations"]:
            champion = part["champion"]
            if champion and champion["release"] == self._champion and is_after(self._since, boot, part):
                self._known[boot, part["generation"], part["weight"]] = champion
        if self.answers >= self._policy.baseline_requests:
            times = {kind: _sum(part[kind] for part in self._known.values()) for kind in ("first_token", "total")}
            self.limits = slow_seconds(times, self._policy)
        return self.is_known


def slow_seconds(champion: dict[str, Buckets], policy: CanaryPolicy) -> SlowSeconds:
    """Return the limits of a slow answer: the policy's quantile of the champion's times, with its tolerance."""
    return SlowSeconds(first_token=_limit(champion["first_token"], policy), total=_limit(champion["total"], policy))


def _limit(buckets: Buckets, policy: CanaryPolicy) -> float | None:
    total = sum(number for _, number in buckets)
    if total < _LEAST_TIMES:
        return None
    seen = 0
    for bound, number in buckets:
        seen += number
        if seen >= policy.latency_quantile * total:
            return None if bound is None else round(policy.latency_tolerance * bound, 6)
    return None


def _sum(histograms: Any) -> Buckets:
    numbers: Counter[float | None] = Counter()
    for histogram in histograms:
        for bound, number in histogram:
            numbers[bound] += number
    return sorted(numbers.items(), key=lambda item: (item[0] is None, item[0] or 0.0))
