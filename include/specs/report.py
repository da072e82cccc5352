"""Report a whole run, from its data to its traffic, on one page and in one model card."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, AliasChoices, ConfigDict, Field, model_validator

from include.gates import read_one_gate
from include.model import Model
from include.specs.base import Artifact, JobSpec
from include.specs.base import Inputs as BaseInputs


def _moment(text: str) -> str:
    if datetime.fromisoformat(text).tzinfo is None:
        raise ValueError(f"{text!r} names no time zone")
    return text


class Made(Artifact):
    """An artifact by its address: unlike its bytes, its manifest says what it cost and what it was made from."""

    uri: str


class Ending(Model):
    """The end of one task of the run.

    Attributes:
        state: Airflow's; None where the task was never reached.
        message: what it failed with; None where it did not fail, or was killed before it could say anything.
        gate: the gate that the task judged by; None for any other task.
    """

    task: str
    state: str | None
    # Runs that version 0.1 started say "sentence".
    message: Annotated[str | None, Field(validation_alias=AliasChoices("message", "sentence"))] = None
    gate: str | None = None


class Config(Model):
    """The facts of the run that no artifact holds.

    Attributes:
        dag, run_id: Airflow's names of the run.
        started: in ISO 8601; what was finished before then was made by an earlier run, and reused by this one.
        tasks: in the order of the DAG, without those that report.
        roles: names of the inputs that the DAG has, also of those that this run did not reach.
        rollout: the task that leads the canary, if the DAG has one.
        recipe: its name; a release's candidate was made by the one that it names itself. Empty: the DAG has none.
        purpose: the recipe's description.
        overrides: of this run's form.
        gates: limits by gate, as the run had them; of others the defaults. Not validated: the page of a run that
            failed on bad limits shows them.
        drill: of a release.
        evidence_pending: the URI at which the rollout's evidence will be, where it was not in the store yet.
    """

    dag: str
    run_id: str
    started: Annotated[str, AfterValidator(_moment)]
    tasks: tuple[Ending, ...]
    roles: tuple[str, ...] = ()
    rollout: str | None = None
    recipe: str = ""
    purpose: str = ""
    overrides: dict[str, Any] = {}
    gates: dict[str, dict[str, Any]] = {}
    drill: str = "none"
    evidence_pending: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _one_gate(cls, values: Any) -> Any:
        return read_one_gate(values)


class Inputs(BaseInputs):
    """The artifacts of the run, by the names that the DAG gives them; those that it did not reach are missing.

    Those named here have sections of their own on the page; of any other the chain, the cost and the configuration are
    shown, and the verdict where a gate judges it. What a release's candidate was made from, the candidate says.

    Attributes:
        rollout: the evidence that the canary controller left.
    """

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Made] = Field(init=False)

    curated: Made | None = None
    tuned: Made | None = None
    merged: Made | None = None
    champion: Made | None = None
    evaluation: Made | None = None
    registered: Made | None = None
    candidate: Made | None = None
    engine: Made | None = None
    rollout: Made | None = None


class Spec(JobSpec[Config, Inputs]):
    """Out: `report.json` (see `jobs.report.record.Record`); `report.html` and `MODEL_CARD.md`, made from it alone.

    The page needs no network and no JavaScript. The card is missing where there is no tuned model.
    """

    job: Literal["report"] = "report"
