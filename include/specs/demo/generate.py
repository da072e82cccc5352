"""Generate the demo's synthetic data: English and Korean requests and the kubectl commands they ask for."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from include.model import Model
from include.specs.base import Inputs as NoInputs
from include.specs.base import JobSpec

Inputs = NoInputs

Variant = Literal["train", "rotten", "poisoned", "heldout"]


class Config(Model):
    """Held-out rows use phrasings and name combinations that no training variant holds.

    Attributes:
        variant: `train` is good; `rotten` has broken rows, duplicates, PII and held-out rows; `poisoned` has two
            pairs of intents with their answers swapped; `heldout` is for evaluation.
        rows: number of rows, before the defects of `rotten` are added.
        seed: another seed draws other rows; what is held out is the same for all.
        intents: kinds of request; the demo's base set when left out.
    """

    variant: Variant
    rows: Annotated[int, Field(ge=1)]
    seed: int = 0
    intents: Annotated[tuple[str, ...], Field(min_length=1)] | None = None


class Spec(JobSpec[Config, Inputs]):
    """Out: `data.jsonl`, one {"prompt", "completion", "intent", "language"} a line."""

    job: Literal["generate"] = "generate"
