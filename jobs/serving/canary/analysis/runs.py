"""The log of a rollout's analysis runs, kept so that anybody can decide each of them again.

A file of JSON lines: first the rollout and its policy, then one line an analysis run with the raw counts, the decision
and its figures. `replay` computes each decision anew from the raw part and compares.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

from pydantic import ValidationError

from include import durable
from include.errors import DataError, first_problem
from include.model import Model
from include.release.rollouts import CanaryPolicy
from jobs.serving.canary.analysis.judge import Action, Decision, Evidence, decide, figures
from jobs.serving.durably import DiskThread, unbroken


class Heading(Model):
    """The first line of a log: whose analysis runs these are."""

    rollout: str
    policy: CanaryPolicy


class AnalysisRun(Model):
    """One analysis run: what was known, what was decided.

    Attributes:
        attempt: 0, and one more each time the rollout began again at its first step.
    """

    attempt: int
    evidence: Evidence
    action: Action
    reasons: tuple[str, ...]
    figures: dict[str, float]


class AnalysisLog:
    """The analysis runs of one rollout, in a file that only grows."""

    def __init__(self, path: Path, heading: Heading, disk: DiskThread) -> None:
        self._path = path
        self._heading = heading
        self._disk = disk
        self._has_heading = False

    async def append(self, attempt: int, evidence: Evidence) -> AnalysisRun:
        """Decide on the evidence, write the analysis run durably, and return it."""
        policy = self._heading.policy
        decision = decide(policy, evidence)
        run = AnalysisRun(
            attempt=attempt,
            evidence=evidence,
            action=decision.action,
            reasons=decision.reasons,
            figures=figures(policy, evidence),
        )
        await unbroken(self._disk.run(self._append, run))
        return run

    async def last(self) -> AnalysisRun | None:
        """Return the newest analysis run, None where there is none."""
        return await self._disk.run(self._read_last)

    def _append(self, run: AnalysisRun) -> None:
        # Read once, for what an earlier controller left: the file grows with every analysis run.
        self._has_heading = self._has_heading or has_runs(self._read())
        if not self._has_heading:
            durable.append_line(self._path, self._heading.model_dump_json().encode())
            self._has_heading = True
        durable.append_line(self._path, run.model_dump_json().encode())

    def _read_last(self) -> AnalysisRun | None:
        data = self._read()
        if not has_runs(data):
            return None
        _, runs = read(data, str(self._path))
        return runs[-1] if runs else None

    def _read(self) -> bytes:
        return self._path.read_bytes() if self._path.exists() else b""


class Replayed(Model):
    """An analysis run decided again.

    Attributes:
        difference: what is not as it was recorded; None where nothing is.
    """

    number: int
    run: AnalysisRun
    difference: str | None


def has_runs(data: bytes) -> bool:
    """Return whether a file's bytes hold a whole line; a crash may leave none."""
    return b"\n" in data


def read(data: bytes, where: str) -> tuple[Heading, list[AnalysisRun]]:
    """Parse a log's bytes; a torn last line does not count.

    Raises:
        DataError: there is no whole line, or a line is not an analysis run.
    """
    lines = data.split(b"\n")[:-1]
    if not lines:
        raise DataError(f"{where} holds no analysis runs: the rollout ended before its first step")
    number = 1
    try:
        heading = Heading.model_validate_json(lines[0])
        runs = []
        for number, line in enumerate(lines[1:], start=2):  # noqa: B007
            runs.append(AnalysisRun.model_validate_json(line))
    except ValidationError as error:
        raise DataError(
            f"{where}, line {number}: not an analysis run ({first_problem(error)}): "
            "take the copy in the rollout's evidence artifact"
        ) from None
    return heading, runs


def replay(heading: Heading, runs: list[AnalysisRun]) -> Iterator[Replayed]:
    """Decide each analysis run again, from its raw part and the policy alone."""
    for number, run in enumerate(runs, start=1):
        decision = decide(heading.policy, run.evidence)
        yield Replayed(number=number, run=run, difference=_difference(heading.policy, run, decision))


def _difference(policy: CanaryPolicy, run: AnalysisRun, decision: Decision) -> str | None:
    if (decision.action, decision.reasons) != (run.action, run.reasons):
        return (
            f"recorded {run.action} {json.dumps(run.reasons, ensure_ascii=False)}, "
            f"decided {decision.action} {json.dumps(decision.reasons, ensure_ascii=False)}"
        )
    found = figures(policy, run.evidence)
    for name in sorted(found.keys() | run.figures.keys()):
        recorded, computed = run.figures.get(name), found.get(name)
        if recorded is None or computed is None or not math.isclose(recorded, computed, rel_tol=1e-9, abs_tol=1e-12):
            return f"figure {name}: recorded {recorded}, computed {computed}"
    return None
