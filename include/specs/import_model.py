"""Snapshot a base model from a Hugging Face folder or hub repository into the store."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from include.model import Model
from include.sources.fingerprint import Fingerprint
from include.sources.model_folder import fingerprints
from include.specs.base import Inputs as NoInputs
from include.specs.base import JobSpec

if TYPE_CHECKING:
    from include.artifacts.s3 import Access

Inputs = NoInputs


class Config(Model):
    """Which model, and which state of it.

    Attributes:
        source: a local folder, as an absolute path, or a hub repository (`organisation/name`).
        revision: the commit of a hub repository, 40 hex digits: a branch or tag may move, and the same spec must
            give the same model.
        files: `include.sources.model_folder.fingerprints(source)` as taken by whoever starts the job, for a local
            folder; the job refuses a folder that differs. Empty means: take it as it is found.
    """

    source: str
    revision: Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")] | None = None
    files: tuple[Fingerprint, ...] = ()

    @property
    def is_folder(self) -> bool:
        return self.source.startswith("/")

    @model_validator(mode="after")
    def _pinned(self) -> Config:
        if self.is_folder and self.revision is not None:
            raise ValueError(f"revision: {self.source} is a local folder, which has none; remove it")
        if not self.is_folder and self.source.count("/") != 1:
            raise ValueError(f"source: {self.source!r} is neither an absolute path nor a hub repository (org/name)")
        if not self.is_folder and self.revision is None:
            raise ValueError(
                f"revision: pin {self.source} to a commit (40 hex digits), so that it stays the same model"
            )
        return self


class Spec(JobSpec[Config, Inputs]):
    """Out: the model folder in `model/`: config, safetensors, tokenizer, generation config, README and licence.

    A pickle, a model that needs its own Python code, and damaged safetensors are refused.
    """

    job: Literal["import_model"] = "import_model"

    @classmethod
    def observe(cls, config: Config, access: Access | None = None) -> Config:
        """Return the configuration with a local folder's fingerprints, unless it holds some already."""
        if config.files or not config.is_folder:
            return config
        return config.model_copy(update={"files": fingerprints(config.source)})
