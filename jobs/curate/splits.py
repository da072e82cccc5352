"""Assign rows to splits by their request alone, so that a row keeps its split whatever else is in the data set."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from jobs.common.conversations import comparison_key


def assign(requests: Sequence[str], *, heldout: float, validation: float, seed: int) -> list[str]:
    """Return the split of each row: "heldout", "validation" or "train".

    Rows with the same request share a split: a request with two answers must not stand on both sides. Where two
    requests or more are left, a split with a share above 0 gets at least one of them, and so does what comes after.

    Args:
        heldout: share of the rows, in 0…1, for the evaluation.
        validation: share of the rows, in 0…1, by whose loss the best weights are chosen.
    """
    draws = [_uniform(request, seed) for request in requests]
    order = sorted(set(draws))
    heldout_below = _boundary(heldout, order) if heldout else 0.0
    rest = [draw for draw in order if draw >= heldout_below]
    validation_below = _boundary(heldout_below + validation, rest) if validation else heldout_below
    return [
        "heldout" if draw < heldout_below else "validation" if draw < validation_below else "train" for draw in draws
    ]


def _uniform(request: str, seed: int) -> float:
    """Return a number in [0, 1) that depends on the request and the seed only."""
    hashed = hashlib.sha256(f"{seed}:{comparison_key(request)}".encode()).digest()
    return int.from_bytes(hashed[:6], "big") / 2**48


def _boundary(share: float, draws: list[float]) -> float:
    """Return `share`, moved as little as puts the first of the sorted draws below it, and the last one not."""
    return min(max(share, draws[0] + 2**-48), draws[-1])
