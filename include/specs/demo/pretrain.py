"""Pretrain the demo's tiny base model from generated and real English/Korean text."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from include.model import Model
from include.specs.base import Inputs as NoInputs
from include.specs.base import JobSpec

Inputs = NoInputs


class Config(Model):
    """Architecture and schedule of the base model. Lengths in tokens, `steps` in optimizer steps."""

    seed: int = 0
    vocab_size: Annotated[int, Field(ge=300, le=65536)] = 1536
    hidden_size: Annotated[int, Field(ge=16)] = 128
    layers: Annotated[int, Field(ge=1)] = 3
    heads: Annotated[int, Field(ge=1)] = 4
    intermediate_size: Annotated[int, Field(ge=16)] = 320
    max_position: Annotated[int, Field(ge=64)] = 512
    initializer_range: Annotated[float, Field(gt=0)] = 0.08
    sequence_length: Annotated[int, Field(ge=16)] = 64
    batch_size: Annotated[int, Field(ge=1)] = 24
    steps: Annotated[int, Field(ge=1)] = 300
    learning_rate: Annotated[float, Field(gt=0)] = 0.006
    warmup_steps: Annotated[int, Field(ge=0)] = 30

    @model_validator(mode="after")
    def _consistent(self) -> Config:
        if self.hidden_size % (2 * self.heads):
            raise ValueError(f"hidden_size {self.hidden_size} is not a multiple of heads, {self.heads}, times two")
        if self.sequence_length > self.max_position:
            raise ValueError(f"sequence_length {self.sequence_length} is over max_position {self.max_position}")
        return self


class Spec(JobSpec[Config, Inputs]):
    """Out: a Hugging Face model folder in `model/` (safetensors, tokenizer, README) and `loss.jsonl`, one
    {"step", "loss", "learning_rate"} a line.
    """

    job: Literal["pretrain"] = "pretrain"
