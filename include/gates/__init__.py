"""Gates turn what a job found out into a verdict: pure functions from a result document to a `Verdict`."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

Outcome = Literal["pass", "fail", "inconclusive"]


def is_number(value: Any) -> bool:
    """Whether a value of a JSON document is a finite number that a float can hold."""
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:
        return False


@dataclass(frozen=True)
class Verdict:
    """What a gate decided, and why.

    Attributes:
        outcome: only "pass" lets a run go on; "inconclusive" says that more rows could still decide.
        reasons: one line each; for "fail" and "inconclusive" every limit that was missed, with the observed value.
        figures: the numbers the decision rests on, by name.

    Raises:
        ValueError: a verdict that is not a pass but names no reason, or a pass that rests on a figure which is not a
            finite number.
    """

    outcome: Outcome
    reasons: tuple[str, ...] = ()
    figures: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.outcome != "pass" and not self.reasons:
            raise ValueError(f"the outcome {self.outcome} needs a reason")
        unusable = [name for name, value in self.figures.items() if not math.isfinite(value)]
        if self.outcome == "pass" and unusable:
            raise ValueError(f"a pass cannot rest on {', '.join(unusable)}: not a finite number")

    @property
    def passed(self) -> bool:
        return self.outcome == "pass"

    @property
    def summary(self) -> str:
        """One line for a log or a form: the outcome, then the reasons, or the figures where all is well."""
        details = self.reasons or tuple(f"{name} {value:.4g}" for name, value in self.figures.items())
        return f"{self.outcome}: {'; '.join(details)}" if details else self.outcome
