"""The artifacts of a run: those that it names itself, and those that they lead back to."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

from include.artifacts.manifest import Manifest
from include.artifacts.store import Store
from include.errors import AnemoneError, ArtifactError, TryAgainError
from include.specs.report import Inputs

_USUAL = (
    "data",
    "heldout",
    "base",
    "curated",
    "checked",
    "tuned",
    "merged",
    "champion",
    "evaluation",
    "registered",
    "candidate",
    "engine",
    "rollout",
    "promoted",
)
"""The order of the page, from the data to the traffic. Any other artifact follows what it was made from."""

_MANIFEST_INPUTS = {"curated": ("heldout",), "engine": ("merged", "evaluation"), "rollout": ("engine",)}
"""By role, the inputs that are found through its manifest, since the run itself may not name them."""


def artifact_of(uri: str) -> str:
    """Return the name of the artifact at `uri`."""
    return uri.rstrip("/").rpartition("/")[2]


class Found(NamedTuple):
    """One artifact with its manifest."""

    uri: str
    manifest: Manifest


class Artifacts:
    """Reads the artifacts of a run by the role that they have in it.

    An artifact that is gone or damaged is noted in `missing` (role → why) and read as None, so that the report has the
    others. A store that cannot be reached raises TryAgainError instead.
    """

    def __init__(self, inputs: Inputs) -> None:
        self.missing: dict[str, str] = {}
        self._found: dict[str, Found] = {}
        for role, artifact in inputs:
            if artifact is not None:
                self._add(role, artifact.uri, artifact.digest)
        record = self.json("candidate", "candidate.json") or {}
        for role, artifact in record.get("inputs", {}).items():
            self._add(role, artifact["uri"], artifact["digest"])
        for role, names in _MANIFEST_INPUTS.items():
            if role in self._found:
                made_from = self._found[role].manifest.inputs
                for name in names:
                    if name in made_from:
                        self._add(name, made_from[name].uri, made_from[name].digest)

    def __iter__(self) -> Iterator[tuple[str, Found]]:
        """Yield every artifact there is, each after those it was made from."""
        roles = {found.manifest.name: role for role, found in self._found.items()}
        placed: dict[str, Found] = {}

        def place(role: str) -> None:
            if role in placed:
                return
            for entry in self._found[role].manifest.inputs.values():
                if made_from := roles.get(artifact_of(entry.uri)):
                    place(made_from)
            placed[role] = self._found[role]

        for role in sorted(self._found, key=lambda role: _USUAL.index(role) if role in _USUAL else len(_USUAL)):
            place(role)
        return iter(placed.items())

    def manifest(self, role: str) -> Manifest | None:
        found = self._found.get(role)
        return found.manifest if found else None

    def json(self, role: str, path: str) -> Any:
        """Return one JSON file; None where there is none."""
        data = self.bytes(role, path)
        return None if data is None else json.loads(data)

    def lines(self, role: str, path: str) -> list[Any] | None:
        """Return a file of JSON lines; None where there is none."""
        data = self.bytes(role, path)
        # Only "\n" ends a line: text may hold the other line breaks that splitlines() knows.
        return None if data is None else [json.loads(line) for line in data.decode().split("\n") if line]

    def bytes(self, role: str, path: str) -> bytes | None:
        """Return one verified file; None where there is none."""
        found = self._found.get(role)
        if found is None:
            return None
        store, name = Store.of(found.uri)
        try:
            return store.read_bytes(name, path)
        except TryAgainError:
            raise
        except AnemoneError as error:
            self.missing[role] = str(error)
            return None

    def _add(self, role: str, uri: str, digest: str) -> None:
        if role in self._found:
            return
        store, name = Store.of(uri)
        try:
            manifest = store.manifest(name)
            if manifest is None:
                raise ArtifactError(f"{uri} does not exist any more")
            if manifest.content_digest != digest:
                raise ArtifactError(f"{uri} now holds other bytes than this run was made from")
        except TryAgainError:
            raise
        except AnemoneError as error:
            self.missing[role] = str(error)
        else:
            self._found[role] = Found(uri, manifest)
