"""Tell a whole run, from its data to its traffic, on one page and in one model card."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator

from include.gates.evaluation import EvaluationGate
from include.specs.base import Artifact, JobSpec, Model
from include.specs.base import Inputs as BaseInputs


def _moment(text: str) -> str:
    if datetime.fromisoformat(text).tzinfo is None:
        raise ValueError(f"{text!r} names no time zone")
    return text


class Made(Artifact):
    """An artifact by its address: unlike its bytes, its manifest says what it cost and what it was made from."""

    uri: str


class Ending(Model):
    """How one task of the run ended.

    Attributes:
        state: Airflow's; None where the task was never reached.
        sentence: what it failed with; None where it did not fail, or was killed before it could say anything.
    """

    task: str
    state: str | None
    sentence: str | None = None


class Config(Model):
    """What the artifacts do not know of the run.

    Attributes:
        dag, run_id: Airflow's names of the run.
        started: in ISO 8601; what was finished before then was made by an earlier run, and reused by this one.
        tasks: in the order of the DAG, without those that report.
        recipe: its name; a release's candidate was made by the one that it names itself.
        purpose: the recipe's description.
        overrides: of this run's form.
        gate: the limits of the evaluation gate.
        drill: of a release.
    """

    dag: Literal["customize", "release"]
    run_id: str
    started: Annotated[str, AfterValidator(_moment)]
    tasks: tuple[Ending, ...]
    recipe: str
    purpose: str = ""
    overrides: dict[str, Any] = {}
    gate: EvaluationGate = EvaluationGate()
    drill: str = "none"


class Inputs(BaseInputs):
    """What the run made, each None where the run did not come so far.

    `customize` has those up to `registered`, `release` has the others: what its candidate was made from, the candidate
    itself says.

    Attributes:
        rollout: the evidence that the canary controller left.
    """

    data: Made | None = None
    heldout: Made | None = None
    base: Made | None = None
    champion: Made | None = None
    curated: Made | None = None
    checked: Made | None = None
    tuned: Made | None = None
    merged: Made | None = None
    evaluation: Made | None = None
    registered: Made | None = None
    candidate: Made | None = None
    engine: Made | None = None
    rollout: Made | None = None
    promoted: Made | None = None


class Spec(JobSpec[Config, Inputs]):
    """Out: `report.json` (see `jobs.report.record.Record`); `report.html` and `MODEL_CARD.md`, made from it alone.

    The page needs no network and no JavaScript. The card is missing where there is no tuned model.
    """

    job: Literal["report"] = "report"
