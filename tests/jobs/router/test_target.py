"""Assignment to arms, with and without a live lease, and the books."""

from __future__ import annotations

import itertools
import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.router.counts import BOUNDS, Histogram
from jobs.router.errors import RequestError
from jobs.router.generation import Generation
from jobs.router.lease import HeldError, Lease
from jobs.router.routes import Route
from jobs.router.samples import Samples
from jobs.router.target import Target

PROMPT = Generation(prompt="x")
DRAWS = 4000


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def make_target(weight: float, draw: random.Random, sample: float = 0.0) -> tuple[Target, Lease, Clock]:
    clock = Clock()
    lease = Lease(clock)
    lease.take("me", 10)
    target = Target("kubectl", Route(generation=0), lease, draw.random)
    target.follow(Route(generation=1, champion="old", canary="new", weight=weight, sample=sample, holder="me"))
    return target, lease, clock


def binomial_bounds(number: int, share: float, error: float) -> tuple[int, int]:
    """Fewest and most successes, each side passed with a probability of at most `error`, by the exact distribution."""
    if share in (0.0, 1.0):
        return round(number * share), round(number * share)
    logs = [
        math.lgamma(number + 1) - math.lgamma(k + 1) - math.lgamma(number - k + 1)
        + k * math.log(share) + (number - k) * math.log1p(-share)
        for k in range(number + 1)
    ]  # fmt: skip
    tail, low = 0.0, 0
    while (tail := tail + math.exp(logs[low])) <= error:
        low += 1
    tail, high = 0.0, number
    while (tail := tail + math.exp(logs[high])) <= error:
        high -= 1
    return low, high


@settings(max_examples=40, deadline=None)
@given(st.sampled_from([0.0, 0.05, 0.25, 0.5, 0.75, 1.0]) | st.floats(0, 1), st.integers(0, 2**32))
def test_each_arm_gets_its_share(weight: float, seed: int) -> None:
    target, _, _ = make_target(weight, random.Random(seed))
    arms = [target.assign(PROMPT).arm for _ in range(DRAWS)]
    low, high = binomial_bounds(DRAWS, weight, 1e-9)
    assert low <= arms.count("canary") <= high
    repeats = sum(1 for one, two in itertools.pairwise(arms) if one == two == "canary")
    if weight not in (0.0, 1.0):
        # Independent draws: a canary follows a canary as often as anything else (pairs overlap, hence six deviations).
        expected = (DRAWS - 1) * weight**2
        assert abs(repeats - expected) <= 6 * math.sqrt(3 * DRAWS * weight**2) + 6


@given(st.floats(0, 1), st.integers(0, 2**32))
@settings(max_examples=20, deadline=None)
def test_samples_are_drawn_apart_from_the_arm(sample: float, seed: int) -> None:
    target, _, _ = make_target(0.5, random.Random(seed), sample)
    for _ in range(1000):
        target.assign(PROMPT).answered("text", 1, "stop")
    samples, lost = target.samples.after(0)
    low, high = binomial_bounds(1000, sample, 1e-9)
    assert low <= len(samples) <= high and lost == 0
    low, high = binomial_bounds(len(samples), 0.5, 1e-9)
    assert low <= sum(one["arm"] == "canary" for one in samples) <= high


def test_a_lapsed_lease_takes_the_weight_away_at_once_and_for_good() -> None:
    target, lease, clock = make_target(1.0, random.Random(0))
    assert target.assign(PROMPT).arm == "canary"
    clock.now = 9.99
    assert target.assign(PROMPT).arm == "canary"
    clock.now = 10.0
    assert target.assign(PROMPT).arm == "champion"
    lease.take("me", 10)
    assert target.assign(PROMPT).arm == "champion", "the holder has to say again what is to be in force"
    first, *_, lapsed = target.counts()
    assert [period["weight"] for period in target.counts()] == [0.0, 1.0, 0.0]
    assert lapsed["generation"] == 1 and lapsed["champion"]["assigned"] == 2 and first["generation"] == 0
    target.follow(target.route.model_copy(update={"generation": 2}))
    assert target.assign(PROMPT).arm == "canary"


def test_renewing_keeps_the_weight() -> None:
    target, lease, clock = make_target(1.0, random.Random(0))
    for step in range(1, 20):
        clock.now = step * 9.0
        lease.take("me", 10)
        assert target.assign(PROMPT).arm == "canary"


def test_another_holder_does_not_inherit_the_weight() -> None:
    target, lease, clock = make_target(1.0, random.Random(0))
    with pytest.raises(HeldError, match="held by me for another 10.0 s"):
        lease.take("somebody", 10)
    clock.now = 11
    lease.take("somebody", 10)
    assert target.state()["weight"] == 0.0
    with pytest.raises(HeldError, match="held by somebody"):
        lease.release("me")
    lease.release("somebody")
    assert lease.holder is None and lease.expires_in == 0.0


def test_a_target_without_champion_says_when_to_come_again() -> None:
    target = Target("kubectl", Route(generation=1), Lease())
    with pytest.raises(RequestError) as caught:
        target.assign(PROMPT)
    assert (caught.value.status, caught.value.retry_after) == (503, 5)


@given(st.lists(st.floats(1e-6, 1000), min_size=1))
def test_every_time_falls_into_a_bucket_at_most_five_percent_wide(times: list[float]) -> None:
    histogram = Histogram()
    for seconds in times:
        histogram.add(seconds)
    buckets = histogram.as_json()
    assert sum(number for _, number in buckets) == len(times)
    for bound, number in buckets:
        top = math.inf if bound is None else bound
        bottom = BOUNDS[-1] if bound is None else bound / 1.0501 if bound > BOUNDS[0] else 0.0
        assert number <= sum(bottom <= seconds <= top for seconds in times)
    assert all(later <= 1.0501 * earlier for earlier, later in itertools.pairwise(BOUNDS))


@given(st.integers(1, 30), st.integers(0, 60), st.integers(0, 70))
def test_the_ring_says_what_it_lost(size: int, added: int, after: int) -> None:
    ring = Samples(max_samples=size)
    for _ in range(added):
        ring.add({"prompt": "x", "answer": None, "messages": None})
    found, lost = ring.after(after, at_most=10)
    oldest = max(1, added - size + 1)
    assert [sample["seq"] for sample in found] == list(range(max(after + 1, oldest), added + 1))[:10]
    assert lost == max(0, oldest - after - 1)


def test_the_ring_is_bounded_in_characters() -> None:
    ring = Samples(max_characters=100)
    for _ in range(20):
        ring.add({"prompt": None, "answer": "x" * 10, "messages": [{"role": "user", "content": "y" * 10}]})
    assert [sample["seq"] for sample in ring.after(0)[0]] == [16, 17, 18, 19, 20]
