"""Take a content-addressed snapshot of a data set before anything reads it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from include.artifacts.manifest import Sha256
from include.model import Model
from include.sources.data_set import fingerprints
from include.sources.fingerprint import Fingerprint
from include.specs.base import GIVEN_BY_RUN, NOT_IDENTITY, JobSpec
from include.specs.base import Inputs as NoInputs

if TYPE_CHECKING:
    from include.artifacts.s3 import Access

Inputs = NoInputs


class Config(Model):
    """Where the data set is, and how it looked when the run was planned.

    Attributes:
        source: a JSONL file or a folder of `*.jsonl` shards, as an absolute path, `file://…` or `s3://…`.
        files: `include.sources.data_set.fingerprints(source)` as taken by whoever starts the job; the job refuses a
            source that differs. Empty means: take it as it is found.
        announced: the content digest under which the data set was announced; other content is refused.
        settle_seconds: how long the source is watched, and must stay unchanged, before it is taken.
        max_row_bytes: a longer line is an error.
    """

    source: Annotated[str, GIVEN_BY_RUN]
    files: tuple[Fingerprint, ...] = ()
    announced: Annotated[Sha256 | None, NOT_IDENTITY] = None
    settle_seconds: Annotated[float, Field(ge=0), NOT_IDENTITY] = 1.0
    max_row_bytes: Annotated[int, Field(ge=1024)] = 10_000_000


class Spec(JobSpec[Config, Inputs]):
    """Out: `data.jsonl` for one file, `part-00000.jsonl`… for several: the bytes as they were.

    The names do not follow the source's, so the same bytes under another name are the same data set.
    """

    job: Literal["ingest"] = "ingest"

    @classmethod
    def observe(cls, config: Config, access: Access | None = None) -> Config:
        """Return the configuration with the source's fingerprints, unless it holds some already."""
        return config if config.files else config.model_copy(update={"files": fingerprints(config.source, access)})
