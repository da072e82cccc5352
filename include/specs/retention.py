"""Plan what of the store may go, and sweep what a plan says."""

from __future__ import annotations

from typing import ClassVar, Literal

from include.artifacts.uses import Run
from include.retention import Policy
from include.specs.base import Artifact, JobSpec, Model
from include.specs.base import Inputs as BaseInputs


class Config(Model):
    """What stays, and who knows what is needed.

    Attributes:
        going_on: runs of DAGs that are queued or running: nothing that they planned or made goes.
        controller_url: the canary controller's. `token_file`: holds the bearer token of its API.
        records: the controller's own folder, where it is on this machine: read while no controller runs there. None:
            the controller has to answer.
    """

    policy: Policy = Policy()
    going_on: tuple[Run, ...] = ()
    controller_url: str
    token_file: str
    records: str | None = None


class Inputs(BaseInputs):
    """`plan` holds `plan.json`; without it a plan is made, and nothing goes."""

    plan: Artifact | None = None


class Spec(JobSpec[Config, Inputs]):
    """Out: `plan.json` (`include.retention.Plan`) where a plan was made; where one was carried out `swept.json`: the
    same of what went, and `spared.json`, [{"path", "reason"}] of what the plan says and is needed by now.

    A plan that is older than an hour is exit 64; a registry or controller that does not answer is 75.
    """

    kind: ClassVar[Literal["job", "effect"]] = "effect"
    job: Literal["retention"] = "retention"
