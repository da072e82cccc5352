"""Check a curated data set against a Great Expectations suite."""

from __future__ import annotations

from typing import Any, Literal

from include.specs.base import Artifact, JobSpec, Model
from include.specs.base import Inputs as BaseInputs


class Config(Model):
    """`suite` is a Great Expectations 1.x suite as JSON: {"name", "expectations": [{"type", "kwargs", "meta"?}]}.

    A recipe names a file of `include/expectations/`; resolving the recipe puts its content here.
    `max_tokens` is the length, prompt, answer and chat template included, that fine-tuning can take.
    """

    suite: dict[str, Any]
    max_tokens: int
    chat_template: str


class Inputs(BaseInputs):
    curated: Artifact
    base: Artifact


class Spec(JobSpec[Config, Inputs]):
    """Out: `result.json` and `data_docs/`. Data that fails the suite is a success of the check.

    `result.json`: {"success": bool, "rows": int, "expectations": [{"name", "success", "observed", "limit",
    "message"}]}.
    """

    job: Literal["check"] = "check"
