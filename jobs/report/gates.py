"""The gates, judged again from the artifacts that they judged, each limit with its number."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import ValidationError

from include.errors import ArtifactError, first_problem
from include.gates import Gate as Rule
from include.gates import Verdict, find_gate, gate_names
from jobs.report.artifacts import Artifacts
from jobs.report.masking import Mask
from jobs.report.record import Gate


def judge_again(
    artifacts: Artifacts, limits: Mapping[str, Mapping[str, Any]], mask: Mask, names: Iterable[str] = ()
) -> tuple[Gate, ...]:
    """Return the verdict of each gate on each artifact that it judges, in the order in which these were made.

    Args:
        limits: by gate; of others the defaults.
        names: gates that the run has. None, as in a release, whose artifacts another run judged: all that there are.
    """
    rules = {name: find_gate(name) for name in sorted(names) or gate_names()}
    found = []
    for role, (_, manifest) in artifacts:
        for name, rule in rules.items():
            if rule.job != manifest.job:
                continue
            verdict = _verdict(rule, artifacts, role, limits.get(name, {}))
            if verdict is not None:
                found.append(_gate(name, verdict, mask))
    return tuple(found)


def shown_name(gate: str) -> str:
    """Return what a gate is called on a page: `data_quality` is the data-quality gate."""
    return gate.replace("_", "-")


def _verdict(rule: Rule[Any], artifacts: Artifacts, role: str, limits: Mapping[str, Any]) -> Verdict | None:
    """Return the verdict; None, and why in `artifacts.missing`, where the artifact cannot be judged."""
    content = {file: artifacts.bytes(role, file) for file in rule.files}
    read = {file: data for file, data in content.items() if data is not None}
    if len(read) < len(content):
        return None
    try:
        return rule.verdict(rule.limits.model_validate(limits), role, read.__getitem__)
    except ArtifactError as error:
        artifacts.missing[role] = str(error)
    except ValidationError as error:
        artifacts.missing[role] = f"its gate's limits are not valid ({first_problem(error)})"
    return None


def _gate(name: str, verdict: Verdict, mask: Mask) -> Gate:
    return Gate(
        name=shown_name(name),
        outcome=verdict.outcome,
        reasons=tuple(mask.text(reason, 600) for reason in verdict.reasons),
        limits=tuple(limit.model_copy(update={"note": mask.text(limit.note)}) for limit in verdict.limits),
    )
