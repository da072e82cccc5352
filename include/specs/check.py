"""Check a curated data set against a Great Expectations suite."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from include.model import Model
from include.specs.base import Artifact, FileContent, JobSpec
from include.specs.base import Inputs as BaseInputs


class ExpectationMeta(Model):
    """`name` is what the gate calls the expectation; `table` is the one that it checks (see `jobs.check.tables`)."""

    name: str
    table: Literal["rows", "figures"] = "rows"


class Expectation(Model):
    """One expectation of Great Expectations 1.x: its type in snake case, its arguments, and what it says in words."""

    type: str
    kwargs: dict[str, Any]
    description: str
    meta: ExpectationMeta


class Suite(Model):
    """A suite as JSON. `{"$PARAMETER": "max_tokens"}` in `kwargs` stands for the configuration's value."""

    name: str
    expectations: tuple[Expectation, ...]


class Config(Model):
    """The expectations of the data.

    A recipe names a file of `include/expectations/` as `suite`.
    `max_tokens` is the length, prompt, answer and chat template included, that fine-tuning can take.
    """

    suite: Annotated[Suite, FileContent("expectations", suffix=".json")]
    max_tokens: int
    chat_template: Annotated[str, FileContent("templates")]


class Inputs(BaseInputs):
    curated: Artifact
    base: Artifact


class Spec(JobSpec[Config, Inputs]):
    """Out: `result.json` and `data_docs/`. Data that fails the suite is a success of the check.

    `result.json`: {"success": bool, "rows": int, "expectations": [{"name", "success", "observed": float | null,
    "limit": text, "message": text}], "figures": {name: float}}; `observed` is a share of rows that miss the
    expectation, or the figure itself, and null where nothing could be observed.
    """

    job: Literal["check"] = "check"
