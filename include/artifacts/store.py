"""The artifact store, on a file system (`file://`) or on S3 (`s3://`).

Layout, below the store's root::

    <name>/manifest.json                    written once, last: the artifact exists when this does
    <name>/attempts/<id>/files/...          what the manifest lists
    <name>/attempts/<id>/events.jsonl       the job's progress; on a file system kept also when the attempt failed
    specs/<name>/<id>.json                  what a job was asked to do
    uses/<name>/<run key>, runs/…           which run used which artifact (see `include.artifacts.uses`)

Nothing is ever overwritten. Two writers of one name each fill their own attempt; one create-if-absent of the
manifest decides (a hard link on a file system, a conditional put on S3), and the loser removes its own attempt.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from pydantic import ValidationError

from include.artifacts.backend import EVENTS, FILES, Backend, Entry, attempt_path, files_path
from include.artifacts.files import FileBackend
from include.artifacts.manifest import MANIFEST, REMEDY, FileEntry, Manifest, safe_name
from include.artifacts.naming import content_digest, file_digest
from include.errors import ArtifactError, ConfigurationError, TryAgainError

if TYPE_CHECKING:
    from include.artifacts.s3 import Access

SPECS, USES = "specs", "uses"

_LARGEST_MANIFEST = 256 * 2**20
"""Bytes; one of a million files has about 150 MB."""


def split_uri(uri: str) -> tuple[str, str]:
    """Return the root of the store and the name of the artifact at `uri`. Raises ConfigurationError for no such URI."""
    root, _, name = uri.rstrip("/").rpartition("/")
    if not root or "://" not in root:
        raise ConfigurationError(
            f"{uri!r} is not an artifact URI: it needs a store and a name, as in file:///store/name"
        )
    try:
        return root, safe_name(name)
    except ValueError as error:
        raise ConfigurationError(f"{uri!r} is not an artifact URI: {error}") from None


class Store:
    """Artifacts below one root URI (`file:///…` or `s3://bucket/prefix`).

    Args:
        existing: the root was made before. A local one that is missing is not mounted, or was renamed: that is a
            TryAgainError, never "no such artifact", and nothing is written into a new folder of its name.
        access: how S3 is reached; None: with this process's own credentials.
    """

    def __init__(self, root: str, *, existing: bool = False, access: Access | None = None) -> None:
        self.root = root.rstrip("/")
        self.access = access
        self._backend = _backend(self.root, existing=existing, access=access)

    def __repr__(self) -> str:
        return f"Store({self.root!r})"

    @classmethod
    def of(cls, uri: str) -> tuple[Store, str]:
        """Return the (existing) store that holds the artifact at `uri`, and the artifact's name."""
        root, name = split_uri(uri)
        return cls(root, existing=True), name

    @property
    def is_local(self) -> bool:
        return self.root.startswith("file://")

    def uri(self, name: str) -> str:
        """Return the URI of an artifact."""
        return f"{self.root}/{name}"

    def check_reachable(self) -> None:
        """Raise TryAgainError where the root of an existing store cannot be reached."""
        self._backend.check_reachable()

    def manifest(self, name: str) -> Manifest | None:
        """Return the committed manifest of `name`, or None where no such artifact exists.

        Raises:
            ArtifactError: a manifest is there but is damaged, altered, or of a newer schema.
        """
        path = f"{name}/{MANIFEST}"
        try:
            data = self._backend.read_plain(path, at_most=_LARGEST_MANIFEST)
        except FileNotFoundError:
            return None
        manifest = Manifest.parse(data, where=f"{self.root}/{path}")
        if manifest.name != name:
            raise ArtifactError(
                f"{self.root}/{path} names {manifest.name!r}: it was moved or copied; remove the folder"
            )
        return manifest

    def names(self, prefix: str = "") -> list[str]:
        """Return the names of committed artifacts that start with `prefix`, sorted."""
        return sorted(self._backend.names(prefix))

    @contextmanager
    def open_files(self, name: str, *, digest: str | None = None) -> Iterator[Path]:
        """Yield a local folder with the verified files of an artifact, read-only by convention.

        On a file system these are the files in place; of S3 a copy in the scratch folder, removed afterwards.

        Args:
            digest: the content digest that the caller planned with; other bytes are refused.

        Raises:
            ArtifactError: the artifact is missing, a file is missing, truncated or altered, or there is one more than
                the manifest lists.
            TryAgainError: the scratch folder is too full for a copy.
        """
        manifest = self._existing_manifest(name)
        if digest is not None and manifest.content_digest != digest:
            raise ArtifactError(
                f"{self.uri(name)} now holds other bytes than this run was planned with "
                f"({manifest.content_digest[:12]}, planned {digest[:12]}): clear this task, which takes what is there"
            )
        with self._backend.open_files(manifest) as folder:
            yield folder

    def lay_out(self, name: str, folder: Path) -> None:
        """Copy the verified files of an artifact into `folder`, which must not exist; errors as of `open_files`."""
        self._backend.lay_out(self._existing_manifest(name), folder)

    def read_json(self, name: str, path: str) -> Any:
        """Return the value in one verified JSON file of an artifact, without a local copy of the others.

        Raises:
            ArtifactError: the artifact or the file is missing, altered, or not JSON.
        """
        try:
            return json.loads(self.read_bytes(name, path))
        except (ValueError, RecursionError) as error:
            raise ArtifactError(
                f"{self.uri(name)}: {path} is not JSON ({error}): run the DAG again with the Param refresh "
                "naming the stage that made it"
            ) from None

    def read_bytes(self, name: str, path: str) -> bytes:
        """Return the bytes of one verified file of an artifact. Raises ArtifactError where it is missing or altered."""
        manifest = self._existing_manifest(name)
        entry = next((file for file in manifest.files if file.path == path), None)
        if entry is None:
            raise ArtifactError(f"{self.uri(name)} holds no {path}: it was made by another version of its job")
        try:
            data = self._backend.read_plain(f"{files_path(manifest)}/{path}", at_most=entry.size)
            intact = hashlib.sha256(data).hexdigest() == entry.sha256
        except (FileNotFoundError, NotADirectoryError, ArtifactError):
            intact = False
        if not intact:
            raise ArtifactError(f"{self.uri(name)}: {path} is missing or was altered after its commit; {REMEDY}")
        return data

    def write_spec(self, name: str, document: str) -> str:
        """Store the spec of a job as JSON, under a new name; return its URI."""
        path = f"{SPECS}/{name}/{uuid.uuid4().hex[:12]}.json"
        if not self.create(path, document.encode()):
            raise FileExistsError(f"{self.root}/{path}")
        return f"{self.root}/{path}"

    def create(self, path: str, data: bytes) -> bool:
        """Create `path` (relative to the root) with `data` unless it exists; return False where it does.

        A crash leaves either nothing or all of it.
        """
        return self._backend.create(path, data)

    def touch(self, path: str) -> None:
        """Make the empty file `path` (relative to the root), or set its time to now; atomic."""
        self._backend.touch(path)

    def read_file(self, path: str) -> bytes:
        """Return the bytes at `path` (relative to the root). Raises FileNotFoundError."""
        return self._backend.read(path)

    def listing(self, below: str = "") -> list[Entry]:
        """Return all that is below a folder (relative to the root) now; nothing where there is no such folder."""
        return list(self._backend.listing(below))

    def last_use(self, name: str) -> datetime | None:
        """Return when a run last noted a use of the artifact `name`; None where none did."""
        notes = self.listing(f"{USES}/{name}")
        return max((entry.modified for entry in notes if not entry.is_folder), default=None)

    def remove(self, name: str, *, unless_used_after: datetime) -> bool:
        """Remove an artifact, so that a crash at any instant leaves it whole or not there.

        Its manifest goes first, then its files. Files that a crash leaves are an attempt that no manifest points to.

        Args:
            unless_used_after: a use that was noted after this moment keeps it.

        Returns:
            Whether it was removed. False also where it was gone already.

        Raises:
            ArtifactError: its manifest is damaged or of a newer schema.
        """
        manifest = self.manifest(name)
        if manifest is None or self._used_after(name, unless_used_after):
            return False
        path = f"{name}/{MANIFEST}"
        data = self.read_file(path)
        self.remove_path(path)
        if self._used_after(name, unless_used_after):
            self.create(path, data)
            return False
        self.remove_path(attempt_path(name, manifest.attempt))
        return True

    def remove_path(self, path: str) -> None:
        """Remove a file, or a folder with all that is in it, durably; links are removed and never followed.

        Folders above that are empty then go, too. Nothing happens where it is gone already.

        Raises:
            ArtifactError: the path leads outside the root, or through a link.
        """
        if not PurePosixPath(path).parts or ".." in PurePosixPath(path).parts or path.startswith("/"):
            raise ArtifactError(f"{path!r} is not a path in {self.root}: nothing was removed")
        self._backend.remove(path)

    def attempt(self, name: str, *, on_progress: Callable[[], None] = lambda: None) -> Attempt:
        """Return a place to write the files of `name`; nothing exists for others until `Attempt.commit`.

        Args:
            on_progress: called, by several threads, whenever the commit has read or stored another piece.
        """
        return Attempt(self, self._backend, name, on_progress)

    def _existing_manifest(self, name: str) -> Manifest:
        manifest = self.manifest(name)
        if manifest is None:
            raise ArtifactError(f"{self.uri(name)} does not exist: clear the task that makes it, and those after it")
        return manifest

    def _used_after(self, name: str, moment: datetime) -> bool:
        last = self.last_use(name)
        # S3 gives times in whole seconds, rounded down.
        return last is not None and last >= moment.replace(microsecond=0)


class Attempt:
    """One try at making an artifact. Use as a context manager: leaving without a commit removes the files.

    Attributes:
        files: local folder to write the artifact's files into.
        events: local path of the job's event log.
    """

    def __init__(self, store: Store, backend: Backend, name: str, on_progress: Callable[[], None]) -> None:
        self.id = uuid.uuid4().hex[:12]
        self.name = name
        self._store = store
        self._on_progress = on_progress
        self._place = backend.attempt(name, self.id)
        self.folder = self._place.folder
        self.files = self.folder / FILES
        self.events = self.folder / EVENTS
        self.files.mkdir()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._place.close(self._is_committed)

    def entries(self) -> tuple[FileEntry, ...]:
        """Return size and sha256 of every file written so far, sorted by path.

        Raises:
            ArtifactError: a link or another special file is among them.
            TryAgainError: the folder is gone; what is not there must not be taken for an artifact without files.
        """
        if not self.files.is_dir():
            raise TryAgainError(f"{self.files} is gone, with all that was written into it: clear this task")
        entries = []
        for path in sorted(self.files.rglob("*")):
            if path.is_symlink() or not (path.is_file() or path.is_dir()):
                raise ArtifactError(f"{path} is a link or a special file: artifacts hold plain files only")
            if path.is_file():
                relative = path.relative_to(self.files).as_posix()
                try:
                    sha256 = file_digest(path, on_progress=self._on_progress)
                    entries.append(FileEntry(path=relative, size=path.stat().st_size, sha256=sha256))
                except ValidationError:
                    raise ArtifactError(f"{relative!r} is no name for a file of an artifact: use plain text") from None
        return tuple(entries)

    def commit(self, **record: Any) -> tuple[Manifest, bool]:
        """Publish the files under the artifact's name.

        Args:
            record: the manifest's other fields (job, inputs, config, code, metrics, provenance).

        Returns:
            The manifest that now exists, and whether it is this attempt's. A concurrent writer may have been
            first: then its artifact stays and this attempt's files are removed.

        Raises:
            TryAgainError: the store cannot be reached, or another wrote the artifact and removed it meanwhile.
        """
        entries = self.entries()
        manifest = Manifest(
            name=self.name, attempt=self.id, files=entries, content_digest=content_digest(entries), **record
        )
        may_exist = False
        try:
            self._place.publish(entries, self._on_progress)
            # From here on a manifest may exist that points to the files, even where its answer never arrives.
            may_exist = True
            if self._store.create(f"{self.name}/{MANIFEST}", manifest.encode()):
                return manifest, True
            # Read it, instead of concluding that another was first: after a lost answer, ours may have been sent twice.
            existing = self._store.manifest(self.name)
            if existing is not None and existing.attempt == self.id:
                return existing, True
            may_exist = False
        finally:
            if not may_exist:
                self._place.withdraw()
        if existing is None:
            raise TryAgainError(f"{self._store.uri(self.name)} was made and removed meanwhile: clear this task")
        return existing, False

    def _is_committed(self) -> bool:
        """Return whether the artifact is this attempt. The store knows: a signal may come just after the commit."""
        try:
            existing = self._store.manifest(self.name)
        except ArtifactError:
            return True
        return existing is not None and existing.attempt == self.id


def _backend(root: str, *, existing: bool, access: Access | None) -> Backend:
    if root.startswith("s3://"):
        # botocore takes a third of a second to import, and a store of files needs none of it.
        from include.artifacts.s3 import Access
        from include.artifacts.s3.backend import S3Backend

        return S3Backend(root, access or Access())
    return FileBackend(root, existing=existing)
