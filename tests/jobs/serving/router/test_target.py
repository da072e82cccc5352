"""Assignment to arms, with and without a live lease, and the counts."""

from __future__ import annotations

import itertools
import math
import random
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.serving.router.counts import BOUNDS, Histogram
from jobs.serving.router.errors import RequestError
from jobs.serving.router.generation import Generation
from jobs.serving.router.lease import HeldError, Lease
from jobs.serving.router.routes import Route, SlowSeconds
from jobs.serving.router.samples import Samples
from jobs.serving.router.target import Assignment, Target

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


@settings(max_examples=40)
@given(st.sampled_from([0.0, 0.05, 0.25, 0.5, 0.75, 1.0]) | st.floats(0, 1), st.integers(0, 2**32))
def test_each_arm_gets_its_share(weight: float, seed: int) -> None:
    target, _, _ = make_target(weight, random.Random(seed))
    arms = [target.assign(PROMPT, stream=False).arm for _ in range(DRAWS)]
    low, high = binomial_bounds(DRAWS, weight, 1e-9)
    assert low <= arms.count("canary") <= high
    repeats = sum(1 for one, two in itertools.pairwise(arms) if one == two == "canary")
    if weight not in (0.0, 1.0):
        # Independent draws: a canary follows a canary as often as anything else (pairs overlap, hence six deviations).
        expected = (DRAWS - 1) * weight**2
        assert abs(repeats - expected) <= 6 * math.sqrt(3 * DRAWS * weight**2) + 6


@given(st.floats(0, 1), st.integers(0, 2**32))
@settings(max_examples=20)
def test_samples_are_drawn_apart_from_the_arm(sample: float, seed: int) -> None:
    target, _, _ = make_target(0.5, random.Random(seed), sample)
    for _ in range(1000):
        target.assign(PROMPT, stream=False).answered("text", 1, "stop")
    samples, lost = target.samples.after(0)
    low, high = binomial_bounds(1000, sample, 1e-9)
    assert low <= len(samples) <= high and lost == 0
    low, high = binomial_bounds(len(samples), 0.5, 1e-9)
    assert low <= sum(one["arm"] == "canary" for one in samples) <= high


def test_a_lapsed_lease_takes_the_weight_away_at_once_and_for_good() -> None:
    target, lease, clock = make_target(1.0, random.Random(0))
    assert target.assign(PROMPT, stream=False).arm == "canary"
    clock.now = 9.99
    assert target.assign(PROMPT, stream=False).arm == "canary"
    clock.now = 10.0
    assert target.assign(PROMPT, stream=False).arm == "champion"
    lease.take("me", 10)
    assert target.assign(PROMPT, stream=False).arm == "champion", "the holder has to say again what is to be in force"
    first, *_, lapsed = target.counts()
    assert [period["weight"] for period in target.counts()] == [0.0, 1.0, 0.0]
    assert lapsed["generation"] == 1 and lapsed["champion"]["assigned"] == 2 and first["generation"] == 0
    target.follow(target.route.model_copy(update={"generation": 2}))
    assert target.assign(PROMPT, stream=False).arm == "canary"


def test_renewing_keeps_the_weight() -> None:
    target, lease, clock = make_target(1.0, random.Random(0))
    for step in range(1, 20):
        clock.now = step * 9.0
        lease.take("me", 10)
        assert target.assign(PROMPT, stream=False).arm == "canary"


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
        target.assign(PROMPT, stream=False)
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
    ring = Samples(max_characters=14_000)
    for _ in range(20):
        ring.add({"prompt": None, "answer": "x" * 1000, "messages": [{"role": "user", "content": "y" * 1000}]})
    assert [sample["seq"] for sample in ring.after(0)[0]] == [17, 18, 19, 20]


def test_the_ring_is_bounded_in_memory_however_short_the_messages() -> None:
    ring = Samples(max_characters=100_000)
    tracemalloc.start()
    try:
        for _ in range(500):
            messages = [{"role": "user", "content": "x"} for _ in range(100)]
            ring.add({"prompt": None, "answer": "", "messages": messages})
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 200_000


def test_a_reply_is_bounded_in_characters_and_never_stands_still() -> None:
    ring = Samples()
    for _ in range(5):
        ring.add({"prompt": "x" * 10_000, "answer": None, "messages": None})
    assert [sample["seq"] for sample in ring.after(1, max_characters=25_000)[0]] == [2, 3]
    assert [sample["seq"] for sample in ring.after(1, max_characters=1)[0]] == [2]


def make_assignment(first_token: float | None, total: float | None, *, stream: bool) -> tuple[Assignment, Clock]:
    """Return a request to the champion under these limits, at time 0."""
    clock = Clock()
    slow = SlowSeconds(first_token=first_token, total=total)
    target = Target("kubectl", Route(generation=1, champion="old", slow_seconds=slow), Lease(), clock=clock)
    return target.assign(PROMPT, stream=stream), clock


def outcome(assignment: Assignment) -> tuple[int, int, int, dict[int, int]]:
    counts = assignment._counts[0]
    assert assignment.ended and counts.in_flight == 0
    return counts.finished, counts.failed, counts.slow, counts.statuses


@pytest.mark.parametrize(
    ("waited", "stream", "token", "slow"),
    [
        (1.9, False, False, False),
        (2.1, False, False, True),
        (0.9, True, False, False),
        (1.1, True, False, True),
        (1.1, False, False, False),
        (1.1, True, True, False),
        (2.1, True, True, True),
    ],
)
def test_a_client_that_gives_up_on_a_slow_arm_is_evidence(waited: float, stream: bool, token: bool, slow: bool) -> None:
    assignment, clock = make_assignment(1.0, 2.0, stream=stream)
    if token:
        assignment.streamed("one")
        assignment.client_ready()
    clock.now = waited
    assignment.client_gone()
    assert outcome(assignment) == (slow, 0, slow, {499: 1})


def test_the_time_that_a_client_takes_to_read_is_not_the_arms() -> None:
    assignment, clock = make_assignment(1.0, 2.0, stream=True)
    clock.now = 0.5
    assignment.streamed("one")
    clock.now = 60.5
    assignment.client_ready()
    clock.now = 61.5
    assignment.streamed("two")
    assignment.answered("", 2, "stop")
    assert outcome(assignment) == (1, 0, 0, {200: 1})
    assert assignment._counts[0].total.seconds == pytest.approx(1.5)
    reading, clock = make_assignment(1.0, 2.0, stream=True)
    reading.streamed("one")
    clock.now = 60.0
    reading.client_gone()
    assert outcome(reading) == (0, 0, 0, {499: 1})


def test_a_mistake_of_a_client_that_goes_away_is_no_failure() -> None:
    assignment, clock = make_assignment(1.0, 2.0, stream=False)
    assignment.fall_back(400)
    clock.now = 60.0
    assignment.client_gone()
    assert outcome(assignment) == (0, 0, 0, {499: 1})
    failed, _ = make_assignment(1.0, 2.0, stream=False)
    failed.fall_back(502)
    failed.client_gone()
    assert outcome(failed) == (1, 1, 0, {502: 1})


@pytest.mark.parametrize(
    ("generation", "judged"),
    [
        (Generation(prompt="x"), True),
        (Generation(prompt="x", max_tokens=16, temperature=0.5), True),
        (Generation(prompt="x", max_tokens=15), False),
        (Generation(prompt="x", stop=("k",)), False),
    ],
)
def test_what_the_request_itself_causes_is_not_held_against_the_arm(generation: Generation, judged: bool) -> None:
    target = Target("kubectl", Route(generation=1, champion="old", sample=1.0), Lease())
    target.assign(generation, stream=False).answered("", 1, "length")
    (period,) = target.counts()
    assert (period["champion"]["finished"], period["champion"]["empty"]) == (1, int(judged))
    assert len(target.samples.after(0)[0]) == judged
