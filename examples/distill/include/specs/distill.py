"""Distil a data set: keep the rows whose answers a teacher model expects most."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from include.model import Model
from include.specs.base import Artifact, FileContent, JobSpec
from include.specs.base import Inputs as BaseInputs


class Config(Model):
    """The choice of the rows. `max_tokens` and `chat_template` come from the recipe's head.

    Attributes:
        keep: share of the rows, those of the lowest loss.
        max_tokens: longest conversation; a longer row is not kept.
        chat_template: Jinja, for the teacher.
        batch_size: rows; part of the identity, because sums in another order differ in their last digits.
    """

    keep: Annotated[float, Field(gt=0, le=1)] = 0.5
    max_tokens: Annotated[int, Field(ge=1)]
    chat_template: Annotated[str, FileContent("templates")]
    batch_size: Annotated[int, Field(ge=1)] = 32


class Inputs(BaseInputs):
    """`teacher` holds `model/`; `rows` holds `data.jsonl`, one {"prompt", "completion"} a line."""

    teacher: Artifact
    rows: Artifact


class Spec(JobSpec[Config, Inputs]):
    """Out: `data.jsonl`, the rows that are kept, as they were and in their order; and `distilled.json`: {"rows",
    "too_long", "kept", "loss": mean of all rows that are not too long, "kept_loss": mean of those that are kept}.

    A loss is in nats an answer token. Selecting by a reference model's loss: M. Marion et al., "When Less is More:
    Investigating Data Pruning for Pretraining LLMs at Scale" (2023), 3.
    """

    job: Literal["distill"] = "distill"
