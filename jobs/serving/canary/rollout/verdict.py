"""How a rollout is decided."""

from __future__ import annotations

from typing import NamedTuple

from include.release.rollouts import Outcome


class Verdict(NamedTuple):
    """An outcome, and why."""

    outcome: Outcome
    reasons: tuple[str, ...] = ()


class UnansweredError(Exception):
    """A peer was away for longer than patience lasts."""
