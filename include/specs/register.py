"""Register a candidate in MLflow: run, parameters, curves, digests, model version, alias `candidate`."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import model_validator

from include.gates import GateLimits, read_one_gate
from include.model import Model
from include.specs.base import Artifact, JobSpec
from include.specs.base import Inputs as BaseInputs
from include.specs.champion import ModelName


class Config(Model):
    """Names of the registration.

    Attributes:
        model: the registered model's name in MLflow.
        recipe: the recipe that made the candidate.
        run_id: of the pipeline's run, for people who come from the registry.
        gates: limits by gate that the candidate has kept.
        resolved_recipe: that recipe as the run resolved it (`include.recipes.resolved.ResolvedRecipe` as JSON), by
            which the candidate is released; None: it is released by what the recipe's file says then.
    """

    model: ModelName
    recipe: str
    run_id: str
    gates: GateLimits = {}
    resolved_recipe: dict[str, Any] | None = None

    @model_validator(mode="before")
    @classmethod
    def _one_gate(cls, values: Any) -> Any:
        return read_one_gate(values)


class Inputs(BaseInputs):
    """`champion` is the record that the champion job left, not the champion's model."""

    data: Artifact
    curated: Artifact
    checked: Artifact | None = None
    base: Artifact
    tuned: Artifact
    merged: Artifact
    evaluation: Artifact
    champion: Artifact


class Spec(JobSpec[Config, Inputs]):
    """Out: `candidate.json`: {"model", "version", "artifact": {"uri", "digest"}, "champion_version", "metrics",
    "resolved_recipe"}.

    Idempotent: the same merged model with the same evaluation against the same champion is the same model version.
    Registered again, it is released by the recipe of the last registration.
    """

    kind: ClassVar[Literal["job", "effect"]] = "effect"
    job: Literal["register"] = "register"
