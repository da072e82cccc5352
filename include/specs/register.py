"""Register a candidate in MLflow: run, parameters, curves, digests, model version, alias `candidate`."""

from __future__ import annotations

from typing import ClassVar, Literal

from include.specs.base import Artifact, JobSpec, Model
from include.specs.base import Inputs as BaseInputs


class Config(Model):
    """`model` is the registered model's name in MLflow, `recipe` the recipe that made the candidate."""

    model: str
    recipe: str
    run_id: str


class Inputs(BaseInputs):
    data: Artifact
    curated: Artifact
    base: Artifact
    tuned: Artifact
    merged: Artifact
    evaluation: Artifact
    champion: Artifact


class Spec(JobSpec[Config, Inputs]):
    """Out: `candidate.json`: {"model", "version", "artifact": {"uri", "digest"}, "champion_version", "metrics"}.

    Idempotent: the same merged model with the same evaluation is the same model version.
    """

    kind: ClassVar[Literal["job", "effect"]] = "effect"
    job: Literal["register"] = "register"
