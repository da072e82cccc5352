"""Intervals against published values, their coverage by simulation, and the rows that decide."""

from __future__ import annotations

import math
import random

import pytest

from include.statistics import (
    PairedCounts,
    paired_difference_interval,
    rows_to_bring,
    rows_to_compare,
    rows_to_decide,
    wilson_interval,
)


@pytest.mark.parametrize(
    ("successes", "rows", "lower", "upper"),
    [
        # Newcombe, Statistics in Medicine 17 (1998) 857–872, table I, method 3.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_interval_has_the_published_values(successes: int, rows: int, lower: float, upper: float) -> None:
    assert wilson_interval(successes, rows) == pytest.approx((lower, upper), abs=5e-5)


@pytest.mark.parametrize(
    ("counts", "lower", "upper"),
    [
        # Newcombe, Statistics in Medicine 17 (1998) 2635–2650, table II, method 10.
        ((36, 12, 2, 0), 0.0569, 0.3404),
        # Cavo et al. 2012 in Fagerland, Lydersen, Laake, "Statistical Analysis of Contingency Tables" (2017), ch. 8.
        ((59, 6, 16, 80), -0.1186, -0.0046),
    ],
)
def test_paired_interval_has_the_published_values(counts: tuple[int, ...], lower: float, upper: float) -> None:
    assert paired_difference_interval(PairedCounts(*counts)) == pytest.approx((lower, upper), abs=5e-5)


def test_swapping_the_models_mirrors_the_interval() -> None:
    there = paired_difference_interval(PairedCounts(880, 25, 40, 55))
    back = paired_difference_interval(PairedCounts(880, 40, 25, 55))
    assert (-there.upper, -there.lower) == pytest.approx(back)


@pytest.mark.parametrize("counts", [(10, 0, 0, 0), (0, 0, 0, 10), (0, 10, 0, 0), (0, 0, 10, 0), (0, 5, 5, 0)])
def test_extreme_tables_give_an_interval_that_holds_the_difference(counts: tuple[int, ...]) -> None:
    table = PairedCounts(*counts)
    interval = paired_difference_interval(table)
    assert -1 <= interval.lower <= table.difference <= interval.upper <= 1
    assert interval.upper - interval.lower > 0.1


def test_coverage_is_close_to_nominal_where_the_gate_works() -> None:
    """3,000 evaluations of 400 rows, exact match .92 against .90, 8% of rows on which the two differ."""
    draw = random.Random(1)
    shares = (0.87, 0.05, 0.03, 0.05)
    covered = 0
    for _ in range(3000):
        cells = [0, 0, 0, 0]
        for cell in draw.choices(range(4), shares, k=400):
            cells[cell] += 1
        interval = paired_difference_interval(PairedCounts(*cells))
        covered += interval.lower <= 0.02 <= interval.upper
    # Four standard errors of the simulation below nominal; Newcombe reports a mean coverage of .9561.
    assert 0.95 - 4 * math.sqrt(0.95 * 0.05 / 3000) < covered / 3000 < 0.98


def test_a_higher_confidence_gives_a_wider_interval() -> None:
    counts = PairedCounts(880, 25, 40, 55)
    narrow, wide = (paired_difference_interval(counts, confidence) for confidence in (0.8, 0.99))
    assert wide.lower < narrow.lower < narrow.upper < wide.upper


def test_rows_to_decide_is_the_smallest_number_that_decides() -> None:
    counts, margin = PairedCounts(880, 20, 30, 70), 0.02
    enough = rows_to_decide(counts, margin)
    assert enough is not None
    assert enough > 1000
    assert paired_difference_interval(counts.scaled(enough)).lower >= -margin
    assert paired_difference_interval(counts.scaled(enough - 1)).lower < -margin


def test_rows_to_decide_of_a_worse_model_decide_against_it() -> None:
    counts = PairedCounts(860, 20, 60, 60)
    enough = rows_to_decide(counts, 0.03)
    assert enough is not None
    assert paired_difference_interval(counts.scaled(enough)).upper < -0.03


def test_rows_to_decide_at_the_margin_itself_are_none() -> None:
    assert rows_to_decide(PairedCounts(870, 20, 40, 70), 0.02) is None


def test_rows_that_decide_already_are_enough() -> None:
    assert rows_to_decide(PairedCounts(900, 30, 10, 60), 0.02) == 1000


@pytest.mark.parametrize("cells", [(0, 0, 0, 0), (-1, 0, 0, 5), (math.nan, 0, 0, 5)])
def test_a_table_without_sense_is_refused(cells: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="counts must be"):
        PairedCounts(*cells)


@pytest.mark.parametrize(("successes", "rows", "confidence"), [(3, 2, 0.95), (0, 0, 0.95), (1, 2, 1.0)])
def test_a_proportion_without_sense_is_refused(successes: int, rows: int, confidence: float) -> None:
    with pytest.raises(ValueError):
        wilson_interval(successes, rows, confidence)


def test_pairs_are_counted() -> None:
    pairs = [(True, True), (True, False), (True, False), (False, True), (False, False)]
    assert PairedCounts.of(pairs) == PairedCounts(1, 2, 1, 1)


def test_rows_to_compare_are_those_below_which_no_equal_models_are_told_to_be_equal() -> None:
    rows = rows_to_compare(0.02)
    assert rows == 189
    for right in (0, rows):
        decided, undecided = (
            paired_difference_interval(PairedCounts(min(right, count), 0, 0, count - min(right, count))).lower >= -0.02
            for count in (rows, rows - 1)
        )
        assert decided and not undecided


@pytest.mark.parametrize(("drawn", "share"), [(30, 0.1), (100, 0.1), (10, 0.5), (1, 0.05)])
def test_rows_to_bring_are_enough_in_99_of_100_draws(drawn: int, share: float) -> None:
    rows = rows_to_bring(drawn, share)
    assert rows % 50 == 0

    def enough(rows: int) -> float:
        seed = random.Random(1)
        return sum(sum(seed.random() < share for _ in range(rows)) >= drawn for _ in range(1000)) / 1000

    assert enough(rows) > 0.98
    assert rows == 50 or enough(rows - 50) < 0.995


def test_rows_to_bring_of_no_share_is_an_error() -> None:
    with pytest.raises(ValueError, match="a share of 0 is not between 0 and 1"):
        rows_to_bring(30, 0)
