"""Move MLflow's alias `champion` to the version that takes the traffic."""

from __future__ import annotations

from typing import ClassVar, Literal

from include.model import Model
from include.specs.base import Inputs as NoInputs
from include.specs.base import JobSpec
from include.specs.champion import ModelName

Inputs = NoInputs


class Config(Model):
    """The alias, and the controller that knows what is live.

    Attributes:
        model: the registered model's name in MLflow, and the target's at the canary controller.
        controller_url: the canary controller's. `token_file`: holds the bearer token of its API.
    """

    model: ModelName
    controller_url: str
    token_file: str


class Spec(JobSpec[Config, Inputs]):
    """Out: `champion.json`: {"model", "version", "former": the champion's version before | null}."""

    kind: ClassVar[Literal["job", "effect"]] = "effect"
    job: Literal["promote"] = "promote"
