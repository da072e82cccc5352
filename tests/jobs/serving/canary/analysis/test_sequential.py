"""The tests that may be looked at at any time: exact properties by enumeration, and their promises by simulation."""

from __future__ import annotations

import itertools
import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.serving.canary.analysis.sequential import RATIOS, log_evidence_below, log_excess, upper_bound

weights = st.floats(0.01, 0.95)
rates = st.floats(0.001, 0.5)


@given(weights=st.lists(weights, min_size=1, max_size=7))
def test_the_expected_e_value_of_events_that_fall_by_the_weight_is_exactly_1(weights):
    total = 0.0
    for falls in itertools.product((0, 1), repeat=len(weights)):
        probability = math.prod(
            weight if on_canary else 1 - weight for weight, on_canary in zip(weights, falls, strict=True)
        )
        parts = [(weight, on_canary, 1 - on_canary) for weight, on_canary in zip(weights, falls, strict=True)]
        total += probability * math.exp(log_excess(parts))
    assert total == pytest.approx(1, rel=1e-9)


@given(
    parts=st.lists(st.tuples(weights, st.integers(0, 30), st.integers(0, 30)), max_size=3),
    weight=weights,
)
def test_one_more_event_leaves_the_expected_e_value_as_it_is(parts, weight):
    """The martingale property at any history, for a part of its own and so for any sequence of weights."""
    before = log_excess(parts)
    canary = log_excess([*parts, (weight, 1, 0)])
    champion = log_excess([*parts, (weight, 0, 1)])
    expected = weight * math.exp(canary - before) + (1 - weight) * math.exp(champion - before)
    assert expected == pytest.approx(1, rel=1e-9)


@given(parts=st.lists(st.tuples(weights, st.integers(0, 40), st.integers(0, 40)), min_size=1, max_size=4))
def test_the_mixture_is_the_mean_of_the_products(parts):
    def product(ratio: float) -> float:
        return math.prod(ratio**c / (w * ratio + 1 - w) ** (c + s) for w, c, s in parts)

    direct = sum(map(product, RATIOS)) / len(RATIOS)
    assert math.exp(log_excess(parts)) == pytest.approx(direct, rel=1e-6)


@given(
    weight=weights,
    canary=st.integers(0, 200),
    champion=st.integers(0, 200),
    more=st.integers(1, 50),
)
def test_evidence_of_harm_never_falls_by_an_event_of_the_canary_nor_rises_by_one_of_the_champion(
    weight, canary, champion, more
):
    before = log_excess([(weight, canary, champion)])
    assert log_excess([(weight, canary + more, champion)]) >= before
    assert log_excess([(weight, canary, champion + more)]) <= before


@given(parts=st.lists(st.tuples(weights, st.integers(0, 10**6), st.integers(0, 10**6)), max_size=5))
def test_any_counts_give_a_number_in_any_order_and_however_they_are_split(parts):
    found = log_excess(parts)
    assert math.isfinite(found)
    assert log_excess(parts[::-1]) == pytest.approx(found, rel=1e-9, abs=1e-9)
    halves = [(w, c // 2, s // 2) for w, c, s in parts] + [(w, c - c // 2, s - s // 2) for w, c, s in parts]
    assert log_excess(halves) == pytest.approx(found, rel=1e-6, abs=1e-6)


@given(limit=rates, bad=st.integers(0, 10**6), good=st.integers(0, 10**6))
def test_any_counts_give_a_bound(limit, bad, good):
    assert math.isfinite(log_evidence_below(limit, bad, bad + good))
    assert 0 <= upper_bound(bad, bad + good, 0.05) <= 1


def test_no_event_is_no_evidence():
    assert log_excess([]) == 0
    assert log_excess([(0.1, 0, 0), (0.5, 0, 0)]) == 0


@given(limit=rates, probabilities=st.lists(st.floats(0, 1), min_size=1, max_size=7))
def test_the_expected_evidence_for_a_rate_below_its_limit_is_at_most_1_where_it_never_is(limit, probabilities):
    """Also where the rate changes from request to request."""
    rates = [limit + (1 - limit) * share for share in probabilities]
    total = 0.0
    for outcomes in itertools.product((0, 1), repeat=len(rates)):
        probability = math.prod(rate if bad else 1 - rate for rate, bad in zip(rates, outcomes, strict=True))
        if probability:
            total += probability * math.exp(log_evidence_below(limit, sum(outcomes), len(outcomes)))
    assert total <= 1 + 1e-9


@given(limit=rates, bad=st.integers(0, 50), good=st.integers(0, 500))
def test_one_more_request_at_the_limit_leaves_the_expected_evidence_as_it_is(limit, bad, good):
    before = log_evidence_below(limit, bad, bad + good)
    worse = log_evidence_below(limit, bad + 1, bad + good + 1)
    better = log_evidence_below(limit, bad, bad + good + 1)
    expected = limit * math.exp(worse - before) + (1 - limit) * math.exp(better - before)
    assert expected == pytest.approx(1, rel=1e-6)


@given(bad=st.integers(0, 40), good=st.integers(0, 2000), alpha=st.floats(0.001, 0.3))
def test_the_upper_bound_is_the_least_limit_that_is_refuted(bad, good, alpha):
    total = bad + good
    bound = upper_bound(bad, total, alpha)
    if bound == 1:
        return
    assert bound >= bad / total
    assert log_evidence_below(min(bound * 1.001, 1 - 1e-9), bad, total) >= -math.log(alpha) - 1e-9
    assert log_evidence_below(bound * 0.999, bad, total) <= -math.log(alpha) + 1e-9


@settings(max_examples=30)
@given(bad=st.integers(0, 10), total=st.integers(20, 500))
def test_a_bad_answer_raises_the_bound_and_a_good_one_lowers_it(bad, total):
    assert upper_bound(bad + 1, total + 1, 0.05) >= upper_bound(bad, total, 0.05)
    assert upper_bound(bad, total + 1, 0.05) <= upper_bound(bad, total, 0.05)


def test_nothing_seen_bounds_nothing():
    assert upper_bound(0, 0, 0.05) == 1


def test_a_flawless_canary_shows_a_rate_below_a_fiftieth_within_200_requests():
    needed = next(n for n in range(1000) if log_evidence_below(0.02, 0, n) >= math.log(20))
    assert 148 <= needed <= 200


def test_an_analysis_run_after_every_event_rolls_an_equal_canary_back_no_more_often_than_promised():
    draw = random.Random(1)
    alpha, runs, crossed = 0.05, 600, 0
    for _ in range(runs):
        canary = champion = 0
        for _ in range(400):
            if draw.random() < 0.25:
                canary += 1
            else:
                champion += 1
            if log_excess([(0.25, canary, champion)]) >= -math.log(alpha):
                crossed += 1
                break
    assert crossed <= runs * alpha + 3 * math.sqrt(runs * alpha * (1 - alpha))


def test_an_analysis_run_after_every_request_promotes_a_canary_at_its_limit_no_more_often_than_promised():
    draw = random.Random(2)
    alpha, runs, crossed = 0.05, 400, 0
    for _ in range(runs):
        bad = 0
        for total in range(1, 1500):
            bad += draw.random() < 0.02
            if total % 5 == 0 and log_evidence_below(0.02, bad, total) >= -math.log(alpha):
                crossed += 1
                break
    assert crossed <= runs * alpha + 3 * math.sqrt(runs * alpha * (1 - alpha))


def test_a_canary_that_fails_three_times_as_often_is_found_by_most():
    draw = random.Random(3)
    weight, found = 0.25, 0
    for _ in range(200):
        canary = champion = 0
        for _ in range(150):
            if draw.random() < 3 * weight / (3 * weight + 1 - weight):
                canary += 1
            else:
                champion += 1
        found += log_excess([(weight, canary, champion)]) >= math.log(60)
    assert found > 190
