"""The statistics of a canary: evidence that may be analysed as often as one likes, and acted upon at any time.

Both tests are test martingales: under the null their expected value never exceeds 1, so by Ville's inequality the
probability that they ever reach 1/alpha is at most alpha, however often it is computed and whenever one stops.

Sources: J. Ville, "Étude critique de la notion de collectif" (1939); A. Ramdas, P. Grünwald, V. Vovk, G. Shafer,
"Game-theoretic statistics and safe anytime-valid inference", Statistical Science 38 (2023) 576–601; M. Lindon,
A. Malek, "Anytime-valid inference for multinomial count data", NeurIPS 2022.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

RATIOS = (1.25, 1.5, 2.0, 3.0, 5.0, 10.0)
"""How many times the champion's rate the canary's may be: the alternatives, of equal weight in the mixture."""

FRACTIONS = ((0.0, 0.5), (0.05, 0.1), (0.1, 0.1), (0.2, 0.1), (0.35, 0.1), (0.5, 0.05), (0.7, 0.05))
"""Alternatives to a rate at its limit, as (fraction of the limit, weight in the mixture).

Half of the weight lies on a rate of 0, which is what a healthy canary shows: it is what decides soonest.
"""

_LOG_RATIOS = tuple(math.log(ratio) for ratio in RATIOS)
_LOG_FRACTIONS = tuple((math.log(fraction), fraction, math.log(weight)) for fraction, weight in FRACTIONS if fraction)
_LOG_WEIGHT_OF_ZERO = math.log(FRACTIONS[0][1])


def log_excess(parts: Iterable[tuple[float, int, int]]) -> float:
    """Return the log E-value against "an event falls on the canary as often as its share of the traffic says".

    Every request is assigned to the canary independently with the probability then in force, w. Where the two arms
    are equally good an event (an error, a slow answer, a bad one) therefore lies on the canary with probability w,
    whatever the rate of events is and however it drifts. Against it stand rates that are ρ times the champion's::

        E = mean over ρ of the product over parts of  ρ^c / (wρ + 1 − w)^(c + s)

    The factors of parts with different weights are multiplied for each ρ, inside the mean: the ratio is one and
    the same over a whole rollout.

    Args:
        parts: (w, c, s) each: the weight in force, 0 < w < 1, and the events of canary and champion among the
            requests assigned under it.

    Returns:
        log E; 0 where there is no event.
    """
    logs = [0.0] * len(RATIOS)
    for weight, canary, champion in parts:
        if canary or champion:
            events = canary + champion
            for index, ratio in enumerate(RATIOS):
                logs[index] += canary * _LOG_RATIOS[index] - events * math.log1p(weight * (ratio - 1))
    return _log_sum(logs) - math.log(len(logs))


def log_evidence_below(limit: float, bad: int, total: int) -> float:
    """Return the log E-value against "each request is bad with a probability of at least `limit`".

    The mean, over the alternatives p = fraction · limit, of the likelihood ratio p^bad (1−p)^(total−bad) against the
    limit's. Each factor's expectation falls with the true probability and is 1 at the limit, so the rate need not
    be constant: being at or above the limit at each request is enough.

    Args:
        limit: of the rate, 0 < limit < 1.
        bad: how many of `total` were bad.
    """
    good = total - bad
    at_limit = math.log1p(-limit)
    logs = [
        weight + bad * log_fraction + good * (math.log1p(-fraction * limit) - at_limit)
        for log_fraction, fraction, weight in _LOG_FRACTIONS
    ]
    if not bad:
        logs.append(_LOG_WEIGHT_OF_ZERO - good * at_limit)
    return _log_sum(logs)


def upper_bound(bad: int, total: int, alpha: float) -> float:
    """Return the anytime-valid upper confidence bound on the rate of bad requests: the least limit refuted at `alpha`.

    `log_evidence_below` rises with the limit, so that the limits not refuted are an interval from 0 on. 1 where
    nothing is refuted.
    """
    threshold = -math.log(alpha)
    low, high = 0.0, 1.0
    if not total or log_evidence_below(1 - 1e-9, bad, total) < threshold:
        return 1.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (low, middle) if log_evidence_below(middle, bad, total) >= threshold else (middle, high)
    return high


def _log_sum(logs: list[float]) -> float:
    """Return log Σ exp, without overflow."""
    largest = max(logs)
    return largest + math.log(sum(math.exp(value - largest) for value in logs))
