"""Score models on held-out rows, greedily, side by side."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from include.model import Model
from include.specs.base import Artifact, FileContent, JobSpec
from include.specs.base import Inputs as BaseInputs


class Config(Model):
    """`rows` held-out rows are taken in file order; `few_shot` examples come from the training rows.

    Attributes:
        rows: at most; where there are fewer, all are taken.
        max_new_tokens: after which an answer is cut off. A row whose right answer is longer counts as wrong.
        max_tokens: of prompt and answer together; a row that is longer counts as wrong.
        few_shot: examples in front of a few-shot prompt; fewer where the model's length does not take them.
        seed: of the choice of examples.
        chat_template: Jinja, for the base model; a merged model brings its own.
        batch_size: rows; part of the identity, because sums in another order differ in their last digits.
    """

    rows: Annotated[int, Field(ge=1)] = 1000
    max_new_tokens: Annotated[int, Field(ge=1)] = 48
    max_tokens: Annotated[int, Field(ge=1)]
    few_shot: Annotated[int, Field(ge=1)] = 4
    seed: int = 0
    chat_template: Annotated[str, FileContent("templates")]
    batch_size: Annotated[int, Field(ge=1)] = 100


class Inputs(BaseInputs):
    """`tuned` is the merged model; `champion` is the record that the champion job left, not the champion's model."""

    base: Artifact
    tuned: Artifact
    data: Artifact
    champion: Artifact | None = None


class Spec(JobSpec[Config, Inputs]):
    """Out: `results.json`, `scores.jsonl`, `answers.jsonl`. A figure that is not a finite number is null.

    `results.json`: {"rows": int, "few_shot": int, "models": {name: {"exact_match", "rouge_l", "heldout_loss",
    "empty_answers": int, "unfinished_answers": int, "rows_too_long": int}}, "labels": {label: {"rows": int,
    "exact_match": {name}}}}, the names being base_zero_shot, base_few_shot, tuned and, where there is one, champion;
    the loss is mean nats an answer token, an unfinished answer is one that was cut off, and a row is too long where
    there is no room for its right answer within `max_new_tokens`, `max_tokens` and the model's positions.
    `scores.jsonl`: {"id", "scores": {name: {"exact_match": 0 or 1, "rouge_l", "loss", "tokens", "too_long": 0 or 1}}}
    a line; `loss` is the mean over the row's `tokens` answer tokens, null with 0 of them where the row is so long that
    the model does not take it whole. Version 0.1 refused such rows, and wrote no "rows_too_long" and no "too_long".
    `answers.jsonl`: {"id", "label"?, "prompt", "reference", "answers": {name: text}} a line.
    """

    memory_key: ClassVar[str | None] = "evaluate.batch_size"
    job: Literal["evaluate"] = "evaluate"
