"""Clean a data set: normalise, filter, redact, de-duplicate, remove what evaluation holds out, split."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from include.model import Model
from include.specs.base import Artifact, JobSpec
from include.specs.base import Inputs as BaseInputs

PiiKind = Literal["email", "phone", "card", "iban", "ip", "korean_id"]


class Mapping(Model):
    """Names of the columns that hold a row's request and answer; detected from the rows when left out.

    Known shapes: {"prompt", "completion"}, {"input", "output"}, {"messages": [{"role", "content"}, …]}.
    `label` names a column whose balance is checked.
    """

    prompt: str | None = None
    completion: str | None = None
    messages: str | None = None
    label: str | None = None

    @model_validator(mode="after")
    def _one_shape(self) -> Mapping:
        if (self.prompt is None) != (self.completion is None):
            raise ValueError("prompt and completion are mapped together: name both columns, or neither")
        if self.messages is not None and self.prompt is not None:
            raise ValueError("map either messages, or prompt and completion, not both")
        return self


class Filters(Model):
    """Bounds of NeMo Curator's heuristic filters, on all of a row's texts together. None switches one off.

    Attributes:
        max_symbol_to_word_ratio: of words that are mostly `#`, or an ellipsis.
        max_non_alpha_numeric_ratio: of characters that are neither letter nor digit of any script.
        min_unique_line_fraction: of lines that are not a repetition.
    """

    min_words: int | None = 2
    max_words: int | None = 2000
    min_mean_word_length: float | None = 1.0
    max_mean_word_length: float | None = 30.0
    max_symbol_to_word_ratio: float | None = 0.5
    max_non_alpha_numeric_ratio: float | None = 0.6
    min_unique_line_fraction: float | None = 0.7


class NearDuplicates(Model):
    """MinHash over word shingles: rows whose estimated Jaccard similarity reaches `similarity` are one group.

    Their answers, taken alone, must be as similar: two long requests that differ in one word may want two answers.
    """

    shingle_words: Annotated[int, Field(ge=1)] = 5
    bands: Annotated[int, Field(ge=1)] = 14
    rows_per_band: Annotated[int, Field(ge=1)] = 8
    similarity: Annotated[float, Field(gt=0, le=1)] = 0.8


class Pii(Model):
    """`redact` replaces what is found by a placeholder such as <EMAIL>; `drop` removes the row."""

    action: Literal["redact", "drop", "keep"] = "redact"
    kinds: tuple[PiiKind, ...] = ("email", "phone", "card", "iban", "korean_id")


class Config(Model):
    """Rules for what is removed, and for the splits of the rest.

    Attributes:
        heldout_fraction: share of the kept rows set apart for evaluation; only where the recipe names no held-out
            set of its own.
        validation_fraction: share of the kept rows by which fine-tuning chooses its best checkpoint.
        seed: of the MinHash permutations and the splits.
    """

    mapping: Mapping = Mapping()
    filters: Filters = Filters()
    near_duplicates: NearDuplicates | None = NearDuplicates()
    pii: Pii = Pii()
    heldout_fraction: Annotated[float, Field(ge=0, lt=0.5)] = 0.1
    validation_fraction: Annotated[float, Field(ge=0, lt=0.5)] = 0.05
    seed: int = 42


class Inputs(BaseInputs):
    data: Artifact
    heldout: Artifact | None = None


class Spec(JobSpec[Config, Inputs]):
    """Out: `train.jsonl`, `validation.jsonl`, `heldout.jsonl`, `removed.jsonl`, `funnel.json`.

    A kept row is {"id", "messages": [{"role", "content"}, …, {"role": "assistant", "content"}], "label"?}; `id` is
    the digest of its messages (16 hex digits). A removed row is {"file", "line", "reason", "detail", "row"}; PII in
    it is redacted unless it is kept altogether.

    `funnel.json`: {"read", "kept", "stages": [{"stage", "rows", "removed": {reason: rows}}], "removed": {reason:
    rows}, "redacted": {kind: rows}, "splits": {"train", "validation", "heldout"}}, all of them numbers of rows;
    a stage's `rows` is what it left.
    """

    job: Literal["curate"] = "curate"
