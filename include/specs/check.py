"""Check a curated data set against a Great Expectations suite."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from include.model import Model
from include.specs.base import Artifact, FileContent, JobSpec, TakenFrom
from include.specs.base import Inputs as BaseInputs


class ExpectationMeta(Model):
    """`name` is what the gate calls the expectation; `table` is the one that it checks (see `jobs.check.tables`)."""

    name: str
    table: Literal["rows", "heldout", "figures"] = "rows"


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


class Training(Model):
    """What fine-tuning asks of the rows: see `include.specs.finetune.Config`."""

    max_tokens: Annotated[int, Field(ge=1)]
    processes: Annotated[int, Field(ge=1)] = 1


class Evaluation(Model):
    """What the evaluation asks of the held-out rows, and its gate of the evaluation.

    See `include.specs.evaluate.Config`, `include.specs.curate.Config` for `heldout_fraction`, and
    `include.gates.evaluation.EvaluationGate` for the last four.
    """

    rows: Annotated[int, Field(ge=1)]
    max_new_tokens: Annotated[int, Field(ge=1)]
    max_tokens: Annotated[int, Field(ge=1)]
    few_shot: Annotated[int, Field(ge=1)]
    seed: int
    heldout_fraction: Annotated[float, Field(ge=0, lt=0.5)]
    min_rows: Annotated[int, Field(ge=1)]
    max_too_long: Annotated[float, Field(ge=0, lt=1)]
    non_inferiority_margin: Annotated[float, Field(gt=0, lt=1)]
    confidence: Annotated[float, Field(gt=0.5, lt=1)]


class Serving(Model):
    """What the engine is built for: see `include.specs.engine.Config`."""

    rows: Annotated[int, Field(ge=1)]
    max_new_tokens: Annotated[int, Field(ge=1)]
    max_tokens: Annotated[int, Field(ge=1)]


class Config(Model):
    """The expectations of the data, and what the stages after the check ask of it.

    A recipe names a file of `include/expectations/` as `suite`.
    `max_tokens` is the length, prompt, answer and chat template included, that fine-tuning can take.
    A run without the stage finetune, evaluate or engine has no `training`, `evaluation` or `serving`.
    """

    suite: Annotated[Suite, FileContent("expectations", suffix=".json")]
    max_tokens: int
    chat_template: Annotated[str, FileContent("templates")]
    training: Annotated[Training | None, TakenFrom(("finetune",))] = None
    evaluation: Annotated[Evaluation | None, TakenFrom(("evaluate", "curate"), gate="evaluation")] = None
    serving: Annotated[Serving | None, TakenFrom(("engine",))] = None


class Inputs(BaseInputs):
    curated: Artifact
    base: Artifact


class Spec(JobSpec[Config, Inputs]):
    """Out: `result.json` and `data_docs/`. Data that fails is a success of the check; a recipe that cannot go with it,
    whatever the data, is not.

    Checked are the suite's expectations and those of the stages after the check (`jobs.check.preflight`).

    `result.json`: {"success": bool, "rows": int, "expectations": [{"name", "success", "observed": float | null,
    "limit": text, "message": text}], "figures": {name: float}}; `observed` is a share of rows that miss the
    expectation, or the figure itself, and null where nothing could be observed.
    """

    job: Literal["check"] = "check"
