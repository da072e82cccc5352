"""Snapshot a base model from a Hugging Face folder or hub repository into the store."""

from __future__ import annotations

from typing import Literal

from include.specs.base import Inputs as NoInputs
from include.specs.base import JobSpec, Model

Inputs = NoInputs


class Config(Model):
    """`source` is a local folder or a hub repository; `revision` pins a hub repository to one commit."""

    source: str
    revision: str | None = None


class Spec(JobSpec[Config, Inputs]):
    """Out: the model folder in `model/` (safetensors only; a pickle is refused)."""

    job: Literal["import_model"] = "import_model"
