"""Plan what of the store to delete, and carry a plan out."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import AliasChoices, Field

from include.artifacts.uses import Run
from include.model import Model
from include.retention import Policy
from include.specs.base import Artifact, JobSpec
from include.specs.base import Inputs as BaseInputs


class Config(Model):
    """What is retained, and who knows what is needed.

    Attributes:
        unfinished_runs: runs of DAGs that are queued or running: nothing that they planned or made is deleted.
            Version 0.1 and before call it `going_on`, which is still read.
        controller_url: the canary controller's. `token_file`: holds the bearer token of its API.
        records: the controller's own folder, where it is on this machine: read while no controller runs there. None:
            the controller has to answer.
    """

    policy: Policy = Policy()
    unfinished_runs: tuple[Run, ...] = Field(default=(), validation_alias=AliasChoices("unfinished_runs", "going_on"))
    controller_url: str
    token_file: str
    records: str | None = None


class Inputs(BaseInputs):
    """`plan` holds `plan.json`; without it a plan is made, and nothing is deleted."""

    plan: Artifact | None = None


class Spec(JobSpec[Config, Inputs]):
    """Out: `plan.json` (`include.retention.Plan`) where a plan was made. Where one was carried out: `swept.json`, the
    plan with the deletions that were done, and `spared.json`, [{"path", "reason"}] of those that were not.

    A plan that is older than an hour is exit 64; a registry or controller that does not answer is 75.
    """

    kind: ClassVar[Literal["job", "effect"]] = "effect"
    job: Literal["retention"] = "retention"
