"""Look up who the champion is now, so that everything after it compares with one and the same."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from include.model import Model
from include.specs.base import Inputs as NoInputs
from include.specs.base import JobSpec

Inputs = NoInputs
ModelName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$")]


class Config(Model):
    """`model` is the registered model's name in MLflow."""

    model: ModelName


class Spec(JobSpec[Config, Inputs]):
    """Out: `champion.json`: {"model", "version": str | null, "artifact": {"uri", "digest"} | null}."""

    kind: ClassVar[Literal["job", "effect"]] = "effect"
    job: Literal["champion"] = "champion"
