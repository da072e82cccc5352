"""What was seen at every look, kept so that anybody can decide again.

A file of JSON lines: first the rollout and its policy, then one line a look with the raw counts, the decision and
its figures. `replay` computes each decision anew from the raw part and compares.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

from pydantic import ValidationError

from include import durable
from include.errors import DataError
from include.release.rollouts import CanaryPolicy
from include.specs.base import Model
from jobs.serving.canary.analysis.judge import Action, Decision, Evidence, decide, figures


class Heading(Model):
    """The first line: whose looks these are."""

    rollout: str
    policy: CanaryPolicy


class Look(Model):
    """One look: what was known, what was decided.

    Attributes:
        attempt: 0, and one more each time the rollout began again at its first step.
    """

    attempt: int
    evidence: Evidence
    action: Action
    reasons: tuple[str, ...]
    figures: dict[str, float]


class Looks:
    """The looks of one rollout, in a file that only grows."""

    def __init__(self, path: Path, heading: Heading) -> None:
        self._path = path
        self._heading = heading

    def append(self, attempt: int, evidence: Evidence) -> Look:
        """Decide, keep it durably, and return it."""
        policy = self._heading.policy
        decision = decide(policy, evidence)
        look = Look(
            attempt=attempt,
            evidence=evidence,
            action=decision.action,
            reasons=decision.reasons,
            figures=figures(policy, evidence),
        )
        if not has_looks(self._read()):
            durable.append_line(self._path, self._heading.model_dump_json().encode())
        durable.append_line(self._path, look.model_dump_json().encode())
        return look

    def last(self) -> Look | None:
        """The newest look, None where there is none."""
        data = self._read()
        if not has_looks(data):
            return None
        _, looks = read(data, str(self._path))
        return looks[-1] if looks else None

    def _read(self) -> bytes:
        return self._path.read_bytes() if self._path.exists() else b""


class Replayed(Model):
    """A look decided again; `difference` says what is not as it was recorded."""

    number: int
    look: Look
    difference: str | None


def has_looks(data: bytes) -> bool:
    """Whether a file's bytes hold a whole line; a crash may leave none."""
    return b"\n" in data


def read(data: bytes, where: str) -> tuple[Heading, list[Look]]:
    """Heading and looks of a file's bytes; a torn last line does not count. Raises DataError for anything else."""
    lines = data.split(b"\n")[:-1]
    if not lines:
        raise DataError(f"{where} holds no looks: the rollout ended before its first step")
    number = 1
    try:
        heading = Heading.model_validate_json(lines[0])
        looks = []
        for number, line in enumerate(lines[1:], start=2):  # noqa: B007
            looks.append(Look.model_validate_json(line))
    except ValidationError as error:
        first = error.errors()[0]
        raise DataError(
            f"{where}, line {number}: not a look ({'.'.join(map(str, first['loc'])) or 'document'}: {first['msg']}): "
            "take the copy in the rollout's evidence artifact"
        ) from None
    return heading, looks


def replay(heading: Heading, looks: list[Look]) -> Iterator[Replayed]:
    """Decide each look again, from its raw part and the policy alone."""
    for number, look in enumerate(looks, start=1):
        decision = decide(heading.policy, look.evidence)
        yield Replayed(number=number, look=look, difference=_difference(heading.policy, look, decision))


def _difference(policy: CanaryPolicy, look: Look, decision: Decision) -> str | None:
    if (decision.action, decision.reasons) != (look.action, look.reasons):
        return (
            f"recorded {look.action} {json.dumps(look.reasons, ensure_ascii=False)}, "
            f"decided {decision.action} {json.dumps(decision.reasons, ensure_ascii=False)}"
        )
    found = figures(policy, look.evidence)
    for name in sorted(found.keys() | look.figures.keys()):
        recorded, computed = look.figures.get(name), found.get(name)
        if recorded is None or computed is None or not math.isclose(recorded, computed, rel_tol=1e-9, abs_tol=1e-12):
            return f"figure {name}: recorded {recorded}, computed {computed}"
    return None
