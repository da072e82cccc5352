"""Confidence intervals for shares of correct answers: one model's, and the paired difference of two.

Pure Python, so that both sides of Anemone can use it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import NormalDist
from typing import NamedTuple


class Interval(NamedTuple):
    """A two-sided confidence interval."""

    lower: float
    upper: float


@dataclass(frozen=True)
class PairedCounts:
    """How often two models, asked the same questions, were right.

    Attributes:
        both: rows that both answered rightly.
        first_only: rows that only the first answered rightly.
        second_only: rows that only the second answered rightly.
        neither: rows that neither answered rightly.

    The counts need not be whole numbers: a projection to another number of rows keeps the shares exactly.
    """

    both: float
    first_only: float
    second_only: float
    neither: float

    def __post_init__(self) -> None:
        cells = (self.both, self.first_only, self.second_only, self.neither)
        if not all(math.isfinite(cell) and cell >= 0 for cell in cells) or not sum(cells):
            raise ValueError(f"counts must be finite, not negative, and not all zero: {cells}")

    @classmethod
    def of(cls, pairs: Iterable[tuple[bool, bool]]) -> PairedCounts:
        """Count (first is right, second is right) over the rows. Raises ValueError where there is no row."""
        cells = {(True, True): 0, (True, False): 0, (False, True): 0, (False, False): 0}
        for first, second in pairs:
            cells[bool(first), bool(second)] += 1
        return cls(cells[True, True], cells[True, False], cells[False, True], cells[False, False])

    @property
    def rows(self) -> float:
        return self.both + self.first_only + self.second_only + self.neither

    @property
    def difference(self) -> float:
        """The first model's share of right answers less the second's."""
        return (self.first_only - self.second_only) / self.rows

    def scaled(self, rows: float) -> PairedCounts:
        """Return the same shares in another number of rows."""
        factor = rows / self.rows
        return PairedCounts(
            self.both * factor, self.first_only * factor, self.second_only * factor, self.neither * factor
        )


def wilson_interval(successes: float, rows: float, confidence: float = 0.95) -> Interval:
    """Return the confidence interval of a proportion: Wilson's score interval, without continuity correction.

    Source: E. B. Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22 (1927)
    209–212; method 3 in R. G. Newcombe, Statistics in Medicine 17 (1998) 857–872.

    Raises:
        ValueError: no rows, successes outside 0…rows, or a confidence outside (0, 1).
    """
    if not 0 <= successes <= rows or not rows > 0:
        raise ValueError(f"{successes} successes in {rows} rows is not a proportion")
    z = _critical_value(confidence)
    share = successes / rows
    centre = 2 * successes + z * z
    spread = z * math.sqrt(z * z + 4 * successes * (1 - share))
    denominator = 2 * (rows + z * z)
    lower = 0.0 if successes == 0 else (centre - spread) / denominator
    upper = 1.0 if successes == rows else (centre + spread) / denominator
    return Interval(lower, upper)


def paired_difference_interval(counts: PairedCounts, confidence: float = 0.95) -> Interval:
    """Return the confidence interval of `counts.difference`: Newcombe's hybrid score interval for paired proportions.

    The Wilson intervals of the two marginal shares are joined with the correlation of the pairs, whose estimate is
    corrected for continuity. It keeps close to its nominal coverage also near 0 and 1, where the Wald interval
    does not, and never leaves [-1, 1].

    Source: method 10 in R. G. Newcombe, "Improved confidence intervals for the difference between binomial
    proportions based on paired data", Statistics in Medicine 17 (1998) 2635–2650.
    """
    rows = counts.rows
    first, second = counts.both + counts.first_only, counts.both + counts.second_only
    lower1, upper1 = wilson_interval(min(first, rows), rows, confidence)
    lower2, upper2 = wilson_interval(min(second, rows), rows, confidence)
    below1, above1 = first / rows - lower1, upper1 - first / rows
    below2, above2 = second / rows - lower2, upper2 - second / rows
    phi = _corrected_correlation(counts)
    below = math.sqrt(max(0.0, below1**2 - 2 * phi * below1 * above2 + above2**2))
    above = math.sqrt(max(0.0, above1**2 - 2 * phi * above1 * below2 + below2**2))
    return Interval(max(-1.0, counts.difference - below), min(1.0, counts.difference + above))


def rows_to_decide(counts: PairedCounts, margin: float, confidence: float = 0.95, most: int = 1_000_000) -> int | None:
    """Return the rows, in all, at which the interval would leave `-margin` on one side, if the shares stay as they are.

    Returns:
        The smallest such number of rows, `counts.rows` where they decide already, or None where `most` would not
        decide: the difference is then too close to the margin for any evaluation of practical size.
    """

    def decides(rows: int) -> bool:
        interval = paired_difference_interval(counts.scaled(rows), confidence)
        return interval.lower >= -margin or interval.upper < -margin

    low, high = math.ceil(counts.rows), most
    if low >= high or decides(low):
        return low if decides(low) else None
    if not decides(high):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if decides(middle) else (middle, high)
    return high


def rows_to_compare(margin: float, confidence: float = 0.95) -> int | None:
    """Return the rows below which two models that answer every row alike cannot be told to be within `margin`.

    Returns:
        As `rows_to_decide`. A model that is better than the other can show it with fewer.
    """
    return rows_to_decide(PairedCounts(1, 0, 0, 0), margin, confidence)


def rows_to_bring(drawn: int, share: float, confidence: float = 0.99) -> int:
    """Return how many rows it takes for `drawn` of them to be drawn, where each is with probability `share`.

    Args:
        share: in 0…1, both excluded.
        confidence: the probability that so many are drawn.

    Returns:
        The smallest such number, rounded up to a multiple of 50.

    Raises:
        ValueError: a share outside (0, 1).
    """
    if not 0 < share < 1:
        raise ValueError(f"a share of {share} is not between 0 and 1")

    def fewer(rows: int) -> float:
        """Return the probability that fewer are drawn: the binomial distribution up to `drawn` - 1."""
        return math.fsum(
            math.exp(
                math.lgamma(rows + 1)
                - math.lgamma(count + 1)
                - math.lgamma(rows - count + 1)
                + count * math.log(share)
                + (rows - count) * math.log1p(-share)
            )
            for count in range(drawn)
        )

    low, high = drawn - 1, drawn
    while fewer(high) > 1 - confidence:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if fewer(middle) <= 1 - confidence else (middle, high)
    return 50 * math.ceil(high / 50)


def _corrected_correlation(counts: PairedCounts) -> float:
    a, b, c, d = counts.both, counts.first_only, counts.second_only, counts.neither
    marginals = (a + b) * (c + d) * (a + c) * (b + d)
    if marginals == 0:
        return 0.0
    covariance = a * d - b * c
    if covariance > 0:
        covariance = max(covariance - counts.rows / 2, 0.0)
    return covariance / math.sqrt(marginals)


def _critical_value(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise ValueError(f"a confidence of {confidence} is not between 0 and 1")
    return NormalDist().inv_cdf(0.5 + confidence / 2)
