"""The artifact store: one implementation over fsspec for `file://` and `s3://`.

Layout, below the store's root::

    <name>/manifest.json                    written once, last: the artifact exists when this does
    <name>/attempts/<id>/files/...          what the manifest lists
    <name>/attempts/<id>/events.jsonl       the job's progress; in a local store kept also when the attempt failed
    specs/<name>/<id>.json                  what a job was asked to do

Nothing is ever overwritten. Two writers of one name each fill their own attempt; one create-if-absent of the
manifest decides, and the loser removes its own attempt.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import fsspec
from fsspec.implementations.local import LocalFileSystem

from include.artifacts.manifest import FileEntry, Manifest
from include.artifacts.naming import content_digest, file_digest
from include.errors import ArtifactError, ConfigurationError

MANIFEST = "manifest.json"
FILES = "files"
EVENTS = "events.jsonl"


def split_uri(uri: str) -> tuple[str, str]:
    """An artifact's URI as (store root, artifact name)."""
    root, _, name = uri.rstrip("/").rpartition("/")
    if not root or "://" not in root:
        raise ConfigurationError(
            f"{uri!r} is not an artifact URI: it needs a store and a name, as in file:///store/name"
        )
    return root, name


class Store:
    """Artifacts below one root URI (`file:///…` or `s3://bucket/prefix`)."""

    def __init__(self, root: str) -> None:
        if "://" not in root:
            raise ConfigurationError(f"the store {root!r} is not a URI: write file:///path or s3://bucket/prefix")
        self.root = root.rstrip("/")
        self._fs, path = fsspec.core.url_to_fs(self.root)
        self._path = path.rstrip("/")

    def __repr__(self) -> str:
        return f"Store({self.root!r})"

    @classmethod
    def of(cls, uri: str) -> tuple[Store, str]:
        """The store that holds the artifact at `uri`, and the artifact's name."""
        root, name = split_uri(uri)
        return cls(root), name

    @property
    def is_local(self) -> bool:
        return isinstance(self._fs, LocalFileSystem)

    def uri(self, name: str) -> str:
        return f"{self.root}/{name}"

    def manifest(self, name: str) -> Manifest | None:
        """The committed manifest of `name`, or None where no such artifact exists.

        Raises:
            ArtifactError: a manifest is there but is damaged, altered, or of a newer schema.
        """
        try:
            data = self._fs.cat_file(f"{self._path}/{name}/{MANIFEST}")
        except FileNotFoundError:
            return None
        where = f"{self.uri(name)}/{MANIFEST}"
        manifest = Manifest.parse(data, where=where)
        if manifest.name != name:
            raise ArtifactError(f"{where} names {manifest.name!r}: it was moved or copied; remove the folder")
        return manifest

    def names(self, prefix: str = "") -> list[str]:
        """Names of committed artifacts that start with `prefix`, sorted."""
        found = self._fs.glob(f"{self._path}/{prefix}*/{MANIFEST}")
        return sorted(path.rstrip("/").split("/")[-2] for path in found)

    @contextmanager
    def open_files(self, name: str, *, digest: str | None = None) -> Iterator[Path]:
        """A local folder with the verified files of an artifact, read-only by convention.

        A local store yields the files in place; a remote one a temporary copy, removed afterwards.

        Args:
            digest: the content digest that the caller planned with; other bytes are refused.

        Raises:
            ArtifactError: the artifact is missing, or a file is missing, truncated or altered.
        """
        manifest = self.manifest(name)
        if manifest is None:
            raise ArtifactError(f"{self.uri(name)} does not exist: clear the task that makes it, and those after it")
        if digest is not None and manifest.content_digest != digest:
            raise ArtifactError(
                f"{self.uri(name)} now holds other bytes than this run was planned with "
                f"({manifest.content_digest[:12]}, planned {digest[:12]}): clear the task that makes it"
            )
        remote = f"{self._path}/{name}/attempts/{manifest.attempt}/{FILES}"
        if self.is_local:
            folder = Path(remote)
            self._verify(folder, manifest)
            yield folder
            return
        with tempfile.TemporaryDirectory(prefix=f"{name}-") as scratch:
            folder = Path(scratch)
            for entry in manifest.files:
                target = folder / entry.path
                target.parent.mkdir(parents=True, exist_ok=True)
                try:
                    self._fs.get_file(f"{remote}/{entry.path}", str(target))
                except FileNotFoundError:
                    continue
            self._verify(folder, manifest)
            yield folder

    def _verify(self, folder: Path, manifest: Manifest) -> None:
        for entry in manifest.files:
            path = folder / entry.path
            where = f"{self.uri(manifest.name)}: {entry.path}"
            remedy = "remove the artifact's folder and clear the task that made it"
            if path.is_symlink() or not path.is_file():
                raise ArtifactError(f"{where} is missing; {remedy}")
            size = path.stat().st_size
            if size != entry.size:
                raise ArtifactError(f"{where} has {size} bytes, its manifest says {entry.size}; {remedy}")
            if file_digest(path) != entry.sha256:
                raise ArtifactError(f"{where} was altered after its commit (its sha256 differs); {remedy}")

    def read_json(self, name: str, path: str) -> Any:
        """One verified JSON file of an artifact, for readers that need no local copy of the rest.

        Raises:
            ArtifactError: the artifact or the file is missing, altered, or not JSON.
        """
        return json.loads(self.read_bytes(name, path))

    def read_bytes(self, name: str, path: str) -> bytes:
        """One verified file of an artifact. Raises ArtifactError where it is missing or altered."""
        import hashlib

        manifest = self.manifest(name)
        if manifest is None:
            raise ArtifactError(f"{self.uri(name)} does not exist: clear the task that makes it, and those after it")
        entry = next((file for file in manifest.files if file.path == path), None)
        if entry is None:
            raise ArtifactError(f"{self.uri(name)} holds no {path}: it was made by another version of its job")
        try:
            data = self._fs.cat_file(f"{self._path}/{name}/attempts/{manifest.attempt}/{FILES}/{path}")
        except FileNotFoundError:
            data = b""
        if hashlib.sha256(data).hexdigest() != entry.sha256:
            raise ArtifactError(
                f"{self.uri(name)}: {path} is missing or was altered after its commit; "
                "remove the artifact's folder and clear the task that made it"
            )
        return data

    def write_spec(self, name: str, document: str) -> str:
        """Keep what a job is asked to do; returns its URI."""
        path = f"specs/{name}/{uuid.uuid4().hex[:12]}.json"
        self._create(path, document.encode())
        return f"{self.root}/{path}"

    def create(self, path: str, data: bytes) -> bool:
        """Create `path` (relative to the root) with `data` unless it exists; False where it does."""
        try:
            self._create(path, data)
        except FileExistsError:
            return False
        return True

    def _create(self, path: str, data: bytes) -> None:
        """Atomic, durable create-if-absent: a crash leaves either nothing or all of it."""
        target = f"{self._path}/{path}"
        if not self.is_local:
            self._fs.pipe_file(target, data, mode="create")
            return
        folder = Path(target).parent
        folder.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=folder, prefix=".")
        try:
            with os.fdopen(descriptor, "wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            os.link(temporary, target)
        finally:
            Path(temporary).unlink()
        _fsync_folder(folder)

    def attempt(self, name: str) -> Attempt:
        """A place to write the files of `name`; nothing exists for others until `Attempt.commit`."""
        return Attempt(self, name)


class Attempt:
    """One try at making an artifact. Use as a context manager: leaving without a commit removes the files.

    Attributes:
        files: local folder to write the artifact's files into.
        events: local path of the job's event log.
    """

    def __init__(self, store: Store, name: str) -> None:
        self.id = uuid.uuid4().hex[:12]
        self.name = name
        self._store = store
        self._remote = f"{store._path}/{name}/attempts/{self.id}"
        self.folder = Path(self._remote if store.is_local else tempfile.mkdtemp(prefix=f"{name}-"))
        self.files = self.folder / FILES
        self.events = self.folder / EVENTS
        self.files.mkdir(parents=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._store.is_local:
            shutil.rmtree(self.folder, ignore_errors=True)
        elif not self._stands():
            shutil.rmtree(self.files, ignore_errors=True)

    def entries(self) -> tuple[FileEntry, ...]:
        """Size and sha256 of every file written so far, sorted by path.

        Raises:
            ArtifactError: a link or another special file is among them.
        """
        entries = []
        for path in sorted(self.files.rglob("*")):
            if path.is_symlink() or not (path.is_file() or path.is_dir()):
                raise ArtifactError(f"{path} is a link or a special file: artifacts hold plain files only")
            if path.is_file():
                relative = path.relative_to(self.files).as_posix()
                entries.append(FileEntry(path=relative, size=path.stat().st_size, sha256=file_digest(path)))
        return tuple(entries)

    def commit(self, **record: Any) -> tuple[Manifest, bool]:
        """Publish the files under the artifact's name.

        Args:
            record: the manifest's other fields (job, inputs, config, code, metrics, provenance).

        Returns:
            The manifest that now stands, and whether it is this attempt's. A concurrent writer may have been
            first: then its artifact stands and this attempt's files are removed.
        """
        entries = self.entries()
        manifest = Manifest(
            name=self.name, attempt=self.id, files=entries, content_digest=content_digest(entries), **record
        )
        self._make_durable(entries)
        data = manifest.model_dump_json(indent=1).encode()
        if self._store.create(f"{self.name}/{MANIFEST}", data):
            return manifest, True
        if not self._store.is_local:
            self._store._fs.rm(self._remote, recursive=True)
        standing = self._store.manifest(self.name)
        assert standing is not None
        return standing, False

    def _stands(self) -> bool:
        """Whether the artifact is this attempt; asked of the store, since a signal may come just after the commit."""
        try:
            standing = self._store.manifest(self.name)
        except ArtifactError:
            return True
        return standing is not None and standing.attempt == self.id

    def _make_durable(self, entries: tuple[FileEntry, ...]) -> None:
        if not self._store.is_local:
            for entry in entries:
                self._store._fs.put_file(str(self.files / entry.path), f"{self._remote}/{FILES}/{entry.path}")
            if self.events.exists():
                self._store._fs.put_file(str(self.events), f"{self._remote}/{EVENTS}")
            return
        for entry in entries:
            with (self.files / entry.path).open("rb") as stream:
                os.fsync(stream.fileno())
        for folder in {(self.files / entry.path).parent for entry in entries} | {self.files, self.folder}:
            _fsync_folder(folder)


def _fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
