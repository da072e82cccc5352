"""The router's metrics for Prometheus, made from the targets' counts at each scrape."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator
from itertools import accumulate

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from jobs.serving.router.counts import BOUNDS, Counts, Histogram
from jobs.serving.router.dispatch import Dispatcher
from jobs.serving.router.targets import Targets

_EVERY = 8
"""Every eighth of the fine bounds is one of Prometheus' buckets, each 48% above the one before."""

_LABELS = ("target", "arm", "release")
_COUNTERS: dict[str, tuple[str, Callable[[Counts], int]]] = {
    "failed": ("Requests that the arm failed.", lambda counts: counts.failed),
    "rescued": ("Requests that the arm failed and the champion answered.", lambda counts: counts.rescued),
    "empty": ("Answers without any text.", lambda counts: counts.empty),
    "slow": ("Answers slower than the limits of their route.", lambda counts: counts.slow),
    "answer_tokens": ("Tokens of all answers.", lambda counts: counts.tokens),
}


class RouterCollector(Collector):
    """Collects one sample a target, arm and release."""

    def __init__(self, targets: Targets, dispatcher: Dispatcher) -> None:
        self._targets = targets
        self._dispatcher = dispatcher

    def collect(self) -> Iterator[Metric]:
        arms = [
            ((target.name, arm, release), counts)
            for target in self._targets
            for (arm, release), counts in target.totals.items()
        ]
        requests = CounterMetricFamily(
            "anemone_router_requests", "Requests that have ended, by status.", labels=(*_LABELS, "status")
        )
        for labels, counts in arms:
            for status, number in counts.statuses.items():
                requests.add_metric((*labels, str(status)), number)
        yield requests
        for name, (text, read) in _COUNTERS.items():
            counter = CounterMetricFamily(f"anemone_router_{name}", text, labels=_LABELS)
            for labels, counts in arms:
                counter.add_metric(labels, read(counts))
            yield counter
        in_flight = GaugeMetricFamily("anemone_router_in_flight", "Requests being answered.", labels=_LABELS)
        first_token = HistogramMetricFamily(
            "anemone_router_first_token_seconds", "Until a stream's first token.", labels=_LABELS
        )
        total = HistogramMetricFamily("anemone_router_seconds", "Until an answer's end.", labels=_LABELS)
        for labels, counts in arms:
            in_flight.add_metric(labels, counts.in_flight)
            first_token.add_metric(labels, _buckets(counts.first_token), counts.first_token.seconds)
            total.add_metric(labels, _buckets(counts.total), counts.total.seconds)
        yield in_flight
        yield first_token
        yield total
        weight = GaugeMetricFamily("anemone_router_canary_weight", "The canary's share in force.", labels=("target",))
        for target in self._targets:
            weight.add_metric((target.name,), target.period.weight)
        yield weight
        yield CounterMetricFamily(
            "anemone_router_turned_away", "Requests that a limit refused.", value=self._dispatcher.turned_away
        )


def make_registry(targets: Targets, dispatcher: Dispatcher) -> CollectorRegistry:
    """Return the registry that the router's `/metrics` shows: its own counts, and those of the process."""
    registry = CollectorRegistry()
    registry.register(RouterCollector(targets, dispatcher))
    ProcessCollector(registry=registry)
    return registry


def _buckets(histogram: Histogram) -> list[tuple[str, float]]:
    coarse = BOUNDS[::_EVERY]
    numbers = [0] * (len(coarse) + 1)
    for bucket, number in histogram.buckets.items():
        # The first coarse bucket that holds the whole of the fine one; the last is +Inf.
        numbers[bisect_left(coarse, BOUNDS[bucket]) if bucket < len(BOUNDS) else len(coarse)] += number
    names = [*(f"{bound:.4g}" for bound in coarse), "+Inf"]
    return list(zip(names, map(float, accumulate(numbers)), strict=True))
