"""The record that makes an artifact exist: what it holds, what it was made from, by which code, at what cost."""

from __future__ import annotations

import json
import re
from datetime import datetime
from pathlib import PurePosixPath
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from include.artifacts.naming import content_digest
from include.errors import ArtifactError

SCHEMA_VERSION = 1
"""Raised when a reader of the previous version could misread a manifest."""

_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,127}")


def _safe_path(path: str) -> str:
    pure = PurePosixPath(path)
    if not path or pure.is_absolute() or ".." in pure.parts or str(pure) != path or "\\" in path or "\0" in path:
        raise ValueError(f"{path!r} is not a plain relative path")
    return path


def _safe_name(name: str) -> str:
    if not _NAME.fullmatch(name) or ".." in name:
        raise ValueError(f"{name!r} is not an artifact name (lower case letters, digits, '-', '_', '.')")
    return name


ArtifactName = Annotated[str, AfterValidator(_safe_name)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class FileEntry(_Record):
    """One file of an artifact; `path` is relative to the attempt's `files/`, `size` is in bytes."""

    path: Annotated[str, AfterValidator(_safe_path)]
    size: Annotated[int, Field(ge=0)]
    sha256: Sha256


class InputEntry(_Record):
    """An artifact that this one was made from: where it was read, and which bytes it had."""

    uri: str
    digest: Sha256


class Provenance(_Record):
    """Where, when and at what cost the artifact was made. None of it is part of the artifact's identity."""

    started: datetime
    finished: datetime
    wall_seconds: float
    cpu_seconds: float
    peak_rss_bytes: int
    host: str
    python: str
    packages: dict[str, str] = {}
    git_sha: str | None = None
    git_dirty: bool | None = None


class Manifest(_Record):
    """Schema 1 of `manifest.json`."""

    schema_version: int = SCHEMA_VERSION
    name: ArtifactName
    job: str
    attempt: Annotated[str, Field(pattern=r"^[0-9a-zA-Z-]{1,64}$")]
    files: tuple[FileEntry, ...]
    content_digest: Sha256
    inputs: dict[str, InputEntry] = {}
    config: dict[str, Any] = {}
    code: str
    metrics: dict[str, float | int | str | bool | None] = {}
    provenance: Provenance

    @classmethod
    def parse(cls, data: bytes, *, where: str) -> Manifest:
        """Read a manifest written by this or an older Anemone.

        Raises:
            ArtifactError: not JSON, a newer schema, an unknown or missing key, an unsafe path, or a content
                digest that does not follow from the files listed.
        """
        try:
            document = json.loads(data)
            version = document["schema_version"]
        except (ValueError, KeyError, TypeError):
            raise ArtifactError(
                f"{where} is not a manifest; the artifact was damaged after its commit: "
                "remove its folder and clear the task that made it"
            ) from None
        if not isinstance(version, int) or version > SCHEMA_VERSION:
            raise ArtifactError(
                f"{where} has schema {version}, this Anemone reads up to {SCHEMA_VERSION}: "
                "update Anemone, or point it at another store"
            )
        try:
            manifest = cls.model_validate(document)
        except ValidationError as error:
            first = error.errors()[0]
            raise ArtifactError(
                f"{where} is not a valid manifest ({'.'.join(map(str, first['loc']))}: {first['msg']}): "
                "remove the artifact's folder and clear the task that made it"
            ) from None
        if content_digest(manifest.files) != manifest.content_digest:
            raise ArtifactError(
                f"{where} lists files that do not give its content digest; it was altered after its commit: "
                "remove the artifact's folder and clear the task that made it"
            )
        return manifest
