"""Look a registered version up for its release: what it was made from, and that its comparison still holds."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from include.model import Model
from include.specs.base import Artifact, JobSpec
from include.specs.base import Inputs as BaseInputs
from include.specs.champion import ModelName

Version = Annotated[str, Field(pattern=r"^[0-9]{1,9}$")]


class Config(Model):
    """The version to look up.

    Attributes:
        model: the registered model's name in MLflow.
        version: None: the newest candidate.
    """

    model: ModelName
    version: Version | None = None


class Inputs(BaseInputs):
    """`registration` is what `register` left, of the version that is looked up; None: its last one."""

    registration: Artifact | None = None


class Spec(JobSpec[Config, Inputs]):
    """Out: `candidate.json`: {"model", "version", "champion_version": the version that it was compared with | null,
    "recipe", "resolved_recipe": as it was registered | null, "gates": the limits that it has kept, by gate, "inputs":
    {name: {"uri", "digest"}}}, the inputs being those of the registration.

    A version whose comparison is out of date, because another champion is live by now, is exit 64.
    """

    kind: ClassVar[Literal["job", "effect"]] = "effect"
    job: Literal["candidate"] = "candidate"
