"""Gates turn what a job found out into a verdict: pure functions from result files to a `Verdict`.

A gate is one module of this package, and its name is the module's. It holds one `GATE`; nothing else names it but the
DAGs and recipes that use it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, TypeGuard, TypeVar

from pydantic import AfterValidator, ValidationError

from include.errors import ArtifactError, ConfigurationError, first_problem, suggestion
from include.model import Model

Outcome = Literal["pass", "fail", "inconclusive"]


def is_number(value: Any) -> TypeGuard[int | float]:
    """Return whether a value of a JSON document is a finite number that a float can hold."""
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:
        return False


class Limit(Model):
    """One limit with its number, in words, and whether it was kept."""

    name: str
    observed: str
    limit: str
    kept: bool
    note: str = ""


@dataclass(frozen=True)
class Verdict:
    """A gate's decision and its reasons.

    Attributes:
        outcome: only "pass" lets a run continue; "inconclusive" says that more rows could still decide.
        reasons: one line each; for "fail" and "inconclusive" every limit that was missed, with the observed value.
        figures: the numbers the decision rests on, by name.
        limits: what the numbers were held against, for a table.

    Raises:
        ValueError: a verdict that is not a pass but names no reason, or a pass that rests on a figure which is not a
            finite number.
    """

    outcome: Outcome
    reasons: tuple[str, ...] = ()
    figures: dict[str, float] = field(default_factory=dict)
    limits: tuple[Limit, ...] = ()

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


L = TypeVar("L", bound=Model)


@dataclass(frozen=True)
class Gate(Generic[L]):
    """One rule by which artifacts are judged.

    Attributes:
        job: whose artifacts it judges.
        limits: model of the recipe's section `gates.<name>`; every limit has a default.
        files: of the artifact, that it reads. `.json` is parsed, `.jsonl` is a list of its rows, others are bytes.
        judge: from the limits and the content of each file, in the order of `files`, to the verdict. Whatever the
            files hold, it answers: what is missing, empty or not a number never passes.
        remedy: a message for the person who finds the red task; `{artifact}` stands for the artifact's URI.
    """

    job: str
    limits: type[L]
    files: tuple[str, ...]
    judge: Callable[..., Verdict]
    remedy: str

    def verdict(self, limits: L, artifact: str, read: Callable[[str], bytes]) -> Verdict:
        """Return the verdict on one artifact.

        Args:
            artifact: its URI, for messages.
            read: gives the content of one of its files.

        Raises:
            ArtifactError: a file is missing or not what its name says.
        """
        return self.judge(limits, *(_parsed(artifact, file, read(file)) for file in self.files))


def gate_names() -> list[str]:
    """Return the name of every gate, sorted."""
    return sorted(path.stem for path in Path(__file__).parent.glob("*.py") if path.stem != "__init__")


def find_gate(name: str) -> Gate[Any]:
    """Return the gate of that name. Raises ConfigurationError for an unknown one, with the nearest known name."""
    names = gate_names()
    if name not in names:
        raise ConfigurationError(f"there is no gate {name!r}: {suggestion(name, names)}")
    return import_module(f"include.gates.{name}").GATE


def _complete(limits: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the limits with every gate's defaults. Raises ValueError for an unknown gate or limit, or a bad value."""
    complete = {}
    for gate, given in limits.items():
        try:
            complete[gate] = find_gate(gate).limits.model_validate(given).model_dump(mode="json")
        except ConfigurationError as error:
            raise ValueError(str(error)) from None
        except ValidationError as error:
            raise ValueError(f"{gate}.{first_problem(error)}") from None
    return complete


GateLimits = Annotated[dict[str, dict[str, Any]], AfterValidator(_complete)]
"""Limits by gate, as a resolved recipe, a run's plan and a candidate hold them: valid, and complete for each gate."""


def read_one_gate(values: Any) -> Any:
    """Return a document with `gates` that version 0.1 wrote with the limits of the evaluation gate alone, as `gate`."""
    if isinstance(values, dict) and "gate" in values:
        rest = {key: value for key, value in values.items() if key != "gate"}
        return {**rest, "gates": {"evaluation": values["gate"]} if values["gate"] else {}}
    return values


def _parsed(artifact: str, file: str, content: bytes) -> Any:
    suffix = Path(file).suffix
    try:
        if suffix == ".json":
            return json.loads(content)
        if suffix == ".jsonl":
            # Only "\n" ends a line: text may hold the other line breaks that splitlines() knows.
            return [json.loads(line) for line in content.split(b"\n") if line.strip()]
    except (ValueError, RecursionError) as error:
        raise ArtifactError(
            f"{artifact}: {file} is not JSON ({error}): run the DAG again with the Param refresh naming the stage that "
            "made it"
        ) from None
    return content
