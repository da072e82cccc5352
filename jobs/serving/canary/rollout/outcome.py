"""The verdict on a rollout."""

from __future__ import annotations

from typing import NamedTuple

from include.release.rollouts import Outcome


class Verdict(NamedTuple):
    """An outcome, and why."""

    outcome: Outcome
    reasons: tuple[str, ...] = ()


class UnreachableError(Exception):
    """The router or a tier of servers was unreachable for longer than `Timing.outage`."""
