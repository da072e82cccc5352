"""The first line: how the run ended, and why."""

from __future__ import annotations

from include.specs.report import Ending, Spec
from jobs.report.gates import shown_name
from jobs.report.masking import Mask
from jobs.report.record import Canary, Gate, Verdict

_NO_MESSAGE = "it was killed, or marked by a person, before it could say why: its log has the last lines"
_MAX_CHARACTERS = 2000
"""A longer message of a task is cut."""


def judge(
    spec: Spec, gates: tuple[Gate, ...], canary: Canary | None, model: str | None, version: str | None, mask: Mask
) -> Verdict:
    """Return the verdict on the run.

    Args:
        model, version: what is a candidate or was to be released, where that is known.
    """
    config = spec.config
    named = f"{model} version {version}" if version else model or "the model"
    stopped = next((task for task in config.tasks if task.state == "failed"), None)
    if stopped is None:
        unfinished = next((task for task in config.tasks if task.state != "success"), None)
        if unfinished is not None and unfinished.state != "skipped":
            how = (unfinished.state or "never reached").replace("_", " ")
            return Verdict(tone="unsure", line=f"Ended early: {unfinished.task} is {how}", stopped_by=unfinished.task)
        if spec.inputs.rollout is not None:
            return Verdict(tone="good", line=f"Live: {named}", reasons=_live(canary))
        if config.evidence_pending is not None:
            return Verdict(tone="good", line=f"Live: {named}", reasons=("its analysis runs are not in the store yet",))
        line = "Passed every gate" if gates else "Succeeded"
        if spec.inputs.registered is not None:
            line = f"{line}: {named} is a candidate"
        return Verdict(tone="good", line=line, reasons=tuple(f"{gate.name}: {_kept(gate)}" for gate in gates))
    if stopped.task == config.rollout and canary is not None and canary.outcome != "promoted":
        return _not_released(stopped, canary, named)
    name = shown_name(stopped.gate) if stopped.gate else None
    gate = next((gate for gate in gates if gate.name == name and gate.outcome != "pass"), None)
    if gate is not None:
        line = f"Stopped by the {gate.name} gate"
        if gate.outcome == "inconclusive":
            return Verdict(tone="unsure", line=f"{line}: inconclusive", reasons=gate.reasons, stopped_by=stopped.task)
        return Verdict(tone="bad", line=line, reasons=gate.reasons, stopped_by=stopped.task)
    line = f"Failed in {stopped.task}"
    if canary is not None and canary.outcome == "promoted":
        line = f"{named} is live, but {stopped.task} failed"
    message = mask.text(stopped.message or _NO_MESSAGE, _MAX_CHARACTERS)
    return Verdict(tone="bad", line=line, reasons=(message,), stopped_by=stopped.task)


def _not_released(stopped: Ending, canary: Canary, named: str) -> Verdict:
    drill = f" (drill: {canary.drill})" if canary.drill != "none" else ""
    words = {"rolled_back": "Rolled back", "inconclusive": "Inconclusive", "refused": "Refused"}
    now = f"Version {canary.champion} answers." if canary.champion else "Nothing is live."
    return Verdict(
        tone="unsure" if canary.outcome == "inconclusive" else "bad",
        line=f"{words.get(canary.outcome, canary.outcome)}{drill}: {named}",
        reasons=(*canary.reasons, now),
        stopped_by=stopped.task,
    )


def _live(canary: Canary | None) -> tuple[str, ...]:
    if canary is None or not canary.runs:
        return ("nothing was live before, so there was no champion to compare it with",)
    last = canary.runs[-1]
    return (
        f"{last.finished[0]:,} requests answered by the canary and {last.finished[1]:,} by the champion, in "
        f"{last.seconds:.0f} s and {len(canary.runs)} analysis runs",
    )


def _kept(gate: Gate) -> str:
    if not gate.limits:
        return "passed"
    kept = sum(limit.kept for limit in gate.limits)
    return f"{kept} of {len(gate.limits)} limits kept"
