"""The record that makes an artifact exist: what it holds, what it was made from, by which code, at what cost."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from datetime import datetime
from pathlib import PurePosixPath
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError

from include.artifacts.naming import content_digest, digest
from include.errors import ArtifactError, first_problem
from include.model import Model

MANIFEST = "manifest.json"

REMEDY = "remove the artifact's folder and clear the task that made it"
"""What to do about an artifact that was damaged after its commit."""

SCHEMA_VERSION = 3
"""Raised when a reader of the previous version could misread a manifest."""

_SEALED_SINCE = 2
_SEAL = "seal"

_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,127}")


def _safe_path(path: str) -> str:
    pure = PurePosixPath(path)
    plain = pure.parts and not pure.is_absolute() and ".." not in pure.parts and str(pure) == path
    if not plain or "\\" in path or "\0" in path:
        raise ValueError(f"{path!r} is not a plain relative path")
    path.encode()  # a name that is not UTF-8 has no digest
    return path


def safe_name(name: str) -> str:
    """Return `name`. Raises ValueError where it cannot be an artifact's."""
    if not _NAME.fullmatch(name) or ".." in name:
        raise ValueError(f"{name!r} is not an artifact name (lower case letters, digits, '-', '_', '.')")
    return name


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


ArtifactName = Annotated[str, AfterValidator(safe_name)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class FileEntry(Model):
    """One file of an artifact; `path` is relative to the attempt's `files/`, `size` is in bytes."""

    path: Annotated[str, AfterValidator(_safe_path)]
    size: Annotated[int, Field(ge=0)]
    sha256: Sha256


class InputEntry(Model):
    """An artifact that this one was made from: where it was read, and which bytes it had."""

    uri: str
    digest: Sha256


class Provenance(Model):
    """Where, when and at what cost the artifact was made. None of it is part of the artifact's identity.

    Attributes:
        wall_seconds: of the last try alone, as all of these; none includes a pod's wait for its node and its image.
        cost: of that time on all nodes, in US dollars; None where the platform gives no price.
    """

    started: datetime
    finished: datetime
    wall_seconds: float
    cpu_seconds: float
    peak_rss_bytes: int
    cost: float | None = None
    host: str
    python: str
    packages: dict[str, str] = {}
    git_sha: str | None = None
    git_dirty: bool | None = None


def _each_once(files: tuple[FileEntry, ...]) -> tuple[FileEntry, ...]:
    twice = [path for path, count in Counter(entry.path for entry in files).items() if count > 1]
    if twice:
        raise ValueError(f"{twice[0]!r} is listed twice")
    return files


class Manifest(Model):
    """Schema 3 of `manifest.json`; a metric that is not a finite number is None."""

    schema_version: int = SCHEMA_VERSION
    name: ArtifactName
    job: str
    attempt: Annotated[str, Field(pattern=r"^[0-9a-zA-Z-]{1,64}$")]
    files: Annotated[tuple[FileEntry, ...], AfterValidator(_each_once)]
    content_digest: Sha256
    inputs: dict[str, InputEntry] = {}
    config: dict[str, Any] = {}
    code: str
    metrics: dict[str, Annotated[float | int | str | bool | None, BeforeValidator(_finite)]] = {}
    provenance: Provenance

    def encode(self) -> bytes:
        """Return the bytes of `manifest.json`: every field, and a seal over all of them."""
        document = self.model_dump(mode="json")
        return json.dumps({**document, _SEAL: digest(document)}, indent=1, ensure_ascii=False).encode()

    @classmethod
    def parse(cls, data: bytes, *, where: str) -> Manifest:
        """Read a manifest written by this or an older Anemone.

        Raises:
            ArtifactError: not JSON, a newer schema, an unknown or missing key, an unsafe path, a content digest that
                does not follow from the files listed, or a seal that does not follow from the fields.
        """
        try:
            document = json.loads(data)
            version = document["schema_version"]
        except (ValueError, KeyError, TypeError, RecursionError):
            raise ArtifactError(
                f"{where} is not a manifest; the artifact was damaged after its commit: "
                "remove its folder and clear the task that made it"
            ) from None
        if type(version) is not int or not 1 <= version <= SCHEMA_VERSION:
            raise ArtifactError(
                f"{where} has schema {version}, this Anemone reads up to {SCHEMA_VERSION}: "
                "update Anemone, or point it at another store"
            )
        seal = document.pop(_SEAL, None)
        try:
            manifest = cls.model_validate(document)
        except ValidationError as error:
            raise ArtifactError(f"{where} is not a valid manifest ({first_problem(error)}): {REMEDY}") from None
        if content_digest(manifest.files) != manifest.content_digest:
            raise ArtifactError(
                f"{where} lists files that do not give its content digest; it was altered after its commit: {REMEDY}"
            )
        if (seal is not None or version >= _SEALED_SINCE) and seal != _seal_of(document):
            raise ArtifactError(
                f"{where} was altered after its commit (its seal does not follow from its fields): {REMEDY}"
            )
        return manifest


def _seal_of(document: dict[str, Any]) -> str | None:
    """Return the digest of a document; None where it holds what no manifest does: NaN, half of a surrogate pair."""
    try:
        return digest(document)
    except (ValueError, RecursionError):
        return None
