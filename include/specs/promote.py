"""Move MLflow's alias `champion` to the version that takes the traffic."""

from __future__ import annotations

from typing import ClassVar, Literal

from include.specs.base import Inputs as NoInputs
from include.specs.base import JobSpec, Model
from include.specs.candidate import Version
from include.specs.champion import ModelName

Inputs = NoInputs


class Config(Model):
    """`model` is the registered model's name in MLflow, `version` the one that is live."""

    model: ModelName
    version: Version


class Spec(JobSpec[Config, Inputs]):
    """Out: `champion.json`: {"model", "version", "former": the champion's version before | null}."""

    kind: ClassVar[Literal["job", "effect"]] = "effect"
    job: Literal["promote"] = "promote"
