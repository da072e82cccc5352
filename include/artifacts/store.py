"""The artifact store, on a file system (`file://`) or on S3 (`s3://`).

Layout, below the store's root::

    <name>/manifest.json                    written once, last: the artifact exists when this does
    <name>/attempts/<id>/files/...          what the manifest lists
    <name>/attempts/<id>/events.jsonl       the job's progress; in a local store kept also when the attempt failed
    specs/<name>/<id>.json                  what a job was asked to do
    uses/…, runs/…                          which run used which artifact (see `include.artifacts.uses`)

Nothing is ever overwritten. Two writers of one name each fill their own attempt; one create-if-absent of the
manifest decides (a hard link on a file system, a conditional put on S3), and the loser removes its own attempt.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from errno import EDQUOT, ENOSPC
from functools import partial
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from pydantic import ValidationError

from include.artifacts.manifest import FileEntry, Manifest, safe_name
from include.artifacts.naming import content_digest, file_digest
from include.artifacts.uses import last_use
from include.durable import fsync
from include.errors import AnemoneError, ArtifactError, ConfigurationError, TryAgainError

if TYPE_CHECKING:
    from include.artifacts.s3 import Access, Bucket

MANIFEST = "manifest.json"
ATTEMPTS = "attempts"
SPECS = "specs"
FILES = "files"
EVENTS = "events.jsonl"

SCRATCH = "ANEMONE_SCRATCH"
"""Environment variable: the folder for copies of what lies on S3; where it is not set, TMPDIR's."""

_LARGEST_MANIFEST = 256 * 2**20
"""Bytes; one of a million files has about 150 MB."""

_REMEDY = "remove the artifact's folder and clear the task that made it"


@dataclass(frozen=True)
class Entry:
    """A file or folder of the store; `path` is relative to its root. A link is a file here, and never followed."""

    path: str
    bytes: int
    modified: datetime
    is_folder: bool


def split_uri(uri: str) -> tuple[str, str]:
    """An artifact's URI as (store root, artifact name)."""
    root, _, name = uri.rstrip("/").rpartition("/")
    if not root or "://" not in root:
        raise ConfigurationError(
            f"{uri!r} is not an artifact URI: it needs a store and a name, as in file:///store/name"
        )
    try:
        return root, safe_name(name)
    except ValueError as error:
        raise ConfigurationError(f"{uri!r} is not an artifact URI: {error}") from None


def scratch_folder() -> Path:
    """Where copies of what lies on S3 are kept: the folder of ANEMONE_SCRATCH, or that of TMPDIR.

    Raises:
        ConfigurationError: it cannot be made or written.
    """
    folder = Path(os.environ.get(SCRATCH) or tempfile.gettempdir())
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(f"{SCRATCH} names {folder}, which cannot be made ({error}): correct it") from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ConfigurationError(f"{SCRATCH} names {folder}, which may not be written: correct it")
    return folder


class Store:
    """Artifacts below one root URI (`file:///…` or `s3://bucket/prefix`).

    Args:
        existing: the root was made before. Where a local one is missing, it is away (not mounted, renamed): that is a
            TryAgainError, never "no such artifact", and nothing is written into a new folder of its name.
        access: how S3 is reached; None: with this process's own identity.
    """

    def __init__(self, root: str, *, existing: bool = False, access: Access | None = None) -> None:
        self.root = root.rstrip("/")
        self.access = access
        self._existing = existing
        self._path = self.root.removeprefix("file://")
        self._bucket: Bucket | None = None
        if self.root.startswith("s3://"):
            # botocore costs a third of a second, and a store of files needs none of it.
            from include.artifacts.s3 import Access, Bucket

            self._bucket = Bucket(self.root, access or Access())
        elif not self.root.startswith("file:///"):
            raise ConfigurationError(
                f"the store {root!r} is not a URI that a store can have: write file:///path or s3://bucket/prefix"
            )

    def __repr__(self) -> str:
        return f"Store({self.root!r})"

    @classmethod
    def of(cls, uri: str) -> tuple[Store, str]:
        """The (existing) store that holds the artifact at `uri`, and the artifact's name."""
        root, name = split_uri(uri)
        return cls(root, existing=True), name

    @property
    def is_local(self) -> bool:
        return self._bucket is None

    def uri(self, name: str) -> str:
        return f"{self.root}/{name}"

    def check_there(self) -> None:
        """Raises TryAgainError where the root of an existing store is away."""
        if self._existing and self.is_local and not Path(self._path).is_dir():
            raise TryAgainError(
                f"the store {self.root} is not there: mount it, or put its folder back; tasks try again meanwhile"
            )

    def manifest(self, name: str) -> Manifest | None:
        """The committed manifest of `name`, or None where no such artifact exists.

        Raises:
            ArtifactError: a manifest is there but is damaged, altered, or of a newer schema.
        """
        path, where = Path(self._path, name, MANIFEST), f"{self.uri(name)}/{MANIFEST}"
        try:
            if self._bucket is not None:
                data = self._bucket.read(f"{name}/{MANIFEST}", at_most=_LARGEST_MANIFEST)
            else:
                found = path.lstat()
                if not stat.S_ISREG(found.st_mode) or found.st_size > _LARGEST_MANIFEST:
                    raise ArtifactError(
                        f"{where} is not a manifest (a link, a special file, or {found.st_size:,} bytes long); the "
                        f"artifact was damaged after its commit: {_REMEDY}"
                    )
                data = path.read_bytes()
        except FileNotFoundError:
            self.check_there()
            return None
        manifest = Manifest.parse(data, where=where)
        if manifest.name != name:
            raise ArtifactError(f"{where} names {manifest.name!r}: it was moved or copied; remove the folder")
        return manifest

    def names(self, prefix: str = "") -> list[str]:
        """Names of committed artifacts that start with `prefix`, sorted."""
        if self._bucket is not None:
            names = self._bucket.folders(prefix)
            manifests = self._bucket.each([partial(self._bucket.file, f"{name}/{MANIFEST}") for name in names])
            return sorted(name for name, manifest in zip(names, manifests, strict=True) if manifest is not None)
        found = [path.parent.name for path in Path(self._path).glob(f"{prefix}*/{MANIFEST}")]
        if not found:
            self.check_there()
        return sorted(found)

    @contextmanager
    def open_files(self, name: str, *, digest: str | None = None) -> Iterator[Path]:
        """A local folder with the verified files of an artifact, read-only by convention.

        A local store yields the files in place; S3 a copy in the scratch folder, removed afterwards.

        Args:
            digest: the content digest that the caller planned with; other bytes are refused.

        Raises:
            ArtifactError: the artifact is missing, a file is missing, truncated or altered, or there is one more than
                the manifest lists.
            TryAgainError: the scratch folder has no room for a copy.
        """
        manifest = self._existing_manifest(name)
        if digest is not None and manifest.content_digest != digest:
            raise ArtifactError(
                f"{self.uri(name)} now holds other bytes than this run was planned with "
                f"({manifest.content_digest[:12]}, planned {digest[:12]}): clear the task that makes it"
            )
        if self._bucket is None:
            folder = Path(self._path, name, ATTEMPTS, manifest.attempt, FILES)
            self._verify(folder, manifest)
            yield folder
            return
        with tempfile.TemporaryDirectory(prefix=f"{name}-", dir=scratch_folder()) as scratch:
            self._download(self._bucket, manifest, Path(scratch))
            yield Path(scratch)

    def lay_out(self, name: str, folder: Path) -> None:
        """Copy the verified files of an artifact into `folder`, which must not exist; errors as of `open_files`."""
        if self._bucket is None:
            with self.open_files(name) as files:
                shutil.copytree(files, folder)
            return
        manifest = self._existing_manifest(name)
        folder.mkdir(parents=True)
        try:
            self._download(self._bucket, manifest, folder)
        except BaseException:
            shutil.rmtree(folder)
            raise

    def _existing_manifest(self, name: str) -> Manifest:
        manifest = self.manifest(name)
        if manifest is None:
            raise ArtifactError(f"{self.uri(name)} does not exist: clear the task that makes it, and those after it")
        return manifest

    def _download(self, bucket: Bucket, manifest: Manifest, folder: Path) -> None:
        """Bring an artifact's files here, and verify each. One that arrives altered is fetched once more."""
        needed, free = sum(entry.size for entry in manifest.files), shutil.disk_usage(folder).free
        if needed > free:
            raise TryAgainError(
                f"{self.uri(manifest.name)} needs {needed:,} bytes in {folder.parent}, where {free:,} are free: make "
                f"room there, or name another folder in {SCRATCH}"
            )
        missing: Sequence[FileEntry] = manifest.files
        for _ in range(2):
            missing = self._fetch(bucket, manifest, missing, folder)
            if not missing:
                return
        raise ArtifactError(
            f"{self.uri(manifest.name)}: {missing[0].path} was altered after its commit (its sha256 differs); {_REMEDY}"
        )

    def _fetch(self, bucket: Bucket, manifest: Manifest, entries: Sequence[FileEntry], folder: Path) -> list[FileEntry]:
        """Those of `entries` that did not arrive as they were committed."""
        from include.artifacts.s3 import Download

        top = f"{manifest.name}/{ATTEMPTS}/{manifest.attempt}/{FILES}"
        for parent in {(folder / entry.path).parent for entry in entries}:
            parent.mkdir(parents=True, exist_ok=True)
        try:
            bucket.download([Download(f"{top}/{entry.path}", folder / entry.path, entry.size) for entry in entries])
        except FileNotFoundError as error:
            path = str(error.filename).removeprefix(f"{top}/")
            raise ArtifactError(f"{self.uri(manifest.name)}: {path} is missing; {_REMEDY}") from None
        except OSError as error:
            if error.errno not in (ENOSPC, EDQUOT):
                raise
            raise TryAgainError(
                f"{folder.parent} became full while {self.uri(manifest.name)} was fetched: make room there, or name "
                f"another folder in {SCRATCH}"
            ) from None
        digests = bucket.each([partial(file_digest, folder / entry.path) for entry in entries])
        return [entry for entry, found in zip(entries, digests, strict=True) if found != entry.sha256]

    def _verify(self, folder: Path, manifest: Manifest) -> None:
        def refuse(path: str, what: str) -> ArtifactError:
            return ArtifactError(f"{self.uri(manifest.name)}: {path} {what}; {_REMEDY}")

        for path in (folder, folder.parent, folder.parent.parent):
            if self.is_local and path.is_symlink():
                raise refuse(path.name, "is a link, and an artifact holds plain files only")
        found = set()
        for path in folder.rglob("*"):
            relative = path.relative_to(folder).as_posix()
            if path.is_symlink() or not (path.is_file() or path.is_dir()):
                raise refuse(relative, "is a link or a special file, and an artifact holds plain files only")
            if path.is_file():
                found.add(relative)
        for entry in manifest.files:
            path = folder / entry.path
            if entry.path not in found:
                self.check_there()
                raise refuse(entry.path, "is missing")
            size = path.stat().st_size
            if size != entry.size:
                raise refuse(entry.path, f"has {size} bytes, its manifest says {entry.size}")
            if file_digest(path) != entry.sha256:
                raise refuse(entry.path, "was altered after its commit (its sha256 differs)")
        # A library that is given the folder would read it, too: a second set of weights, an adapter, a template.
        if unlisted := sorted(found - {entry.path for entry in manifest.files}):
            raise ArtifactError(
                f"{self.uri(manifest.name)}: {unlisted[0]!r} was added after its commit (its manifest does not list "
                f"it): remove {folder / unlisted[0]}"
            )

    def read_json(self, name: str, path: str) -> Any:
        """One verified JSON file of an artifact, for readers that need no local copy of the rest.

        Raises:
            ArtifactError: the artifact or the file is missing, altered, or not JSON.
        """
        try:
            return json.loads(self.read_bytes(name, path))
        except (ValueError, RecursionError) as error:
            raise ArtifactError(
                f"{self.uri(name)}: {path} is not JSON ({error}): clear the task that made it with refresh"
            ) from None

    def read_bytes(self, name: str, path: str) -> bytes:
        """One verified file of an artifact. Raises ArtifactError where it is missing or altered."""
        manifest = self._existing_manifest(name)
        entry = next((file for file in manifest.files if file.path == path), None)
        if entry is None:
            raise ArtifactError(f"{self.uri(name)} holds no {path}: it was made by another version of its job")
        relative = f"{ATTEMPTS}/{manifest.attempt}/{FILES}/{path}"
        try:
            # A link may lead anywhere, and a pipe or a device never ends.
            plain = not self.is_local or _is_plain_file(Path(self._path, name), relative, entry.size)
            data = self.read_file(f"{name}/{relative}") if plain else b""
        except FileNotFoundError:
            plain = False
        if not plain:
            self.check_there()
        if not plain or hashlib.sha256(data).hexdigest() != entry.sha256:
            raise ArtifactError(f"{self.uri(name)}: {path} is missing or was altered after its commit; {_REMEDY}")
        return data

    def write_spec(self, name: str, document: str) -> str:
        """Keep what a job is asked to do; returns its URI."""
        path = f"{SPECS}/{name}/{uuid.uuid4().hex[:12]}.json"
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
        if self._bucket is not None:
            if not self._bucket.create(path, data):
                raise FileExistsError(f"{self.root}/{path}")
            return
        self.check_there()
        target = Path(self._path, path)
        folder = target.parent
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
        fsync(folder)

    def touch(self, path: str) -> None:
        """Make the empty file `path` (relative to the root), or make it new; atomic."""
        if self._bucket is not None:
            self._bucket.put(path, b"")
            return
        self.check_there()
        target = Path(self._path, path)
        while True:
            target.parent.mkdir(parents=True, exist_ok=True)
            # A sweep may take the empty folder away in between.
            with suppress(FileNotFoundError):
                target.touch()
                return

    def read_file(self, path: str) -> bytes:
        """The bytes at `path` (relative to the root). Raises FileNotFoundError."""
        return Path(self._path, path).read_bytes() if self._bucket is None else self._bucket.read(path)

    def listing(self, below: str = "") -> list[Entry]:
        """Everything below a folder (relative to the root), as it is now; nothing where there is no such folder."""
        if self._bucket is not None:
            found = self._bucket.walk(below)
            return [Entry(one.path, one.bytes, one.modified, is_folder=False) for one in found]
        self.check_there()
        return list(_walk(Path(self._path), Path(self._path, below)))

    def remove(self, name: str, *, unless_used_after: datetime) -> bool:
        """Remove an artifact, so that a crash at any instant leaves it whole or not there.

        First its manifest goes, then its files. Files that a crash leaves are an attempt that no manifest points to.

        Args:
            unless_used_after: a use that was noted after this moment keeps it.

        Returns:
            Whether it went. False also where it is gone already.

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
        self.remove_path(f"{name}/{ATTEMPTS}/{manifest.attempt}")
        return True

    def _used_after(self, name: str, moment: datetime) -> bool:
        last = last_use(self, name)
        # S3 tells whole seconds, rounded down.
        return last is not None and last >= moment.replace(microsecond=0)

    def remove_path(self, path: str) -> None:
        """Remove a file, or a folder with all that is in it, durably; links are removed and never followed.

        Folders above that are empty then go, too. Nothing happens where it is gone already.
        """
        if not PurePosixPath(path).parts or ".." in PurePosixPath(path).parts or path.startswith("/"):
            raise ArtifactError(f"{path!r} is not a path in {self.root}: nothing was removed")
        if self._bucket is not None:
            self._bucket.delete(path)
            return
        root, target = Path(self._path), Path(self._path) / path
        if any(folder.is_symlink() for folder in target.parents if folder.is_relative_to(root) and folder != root):
            raise ArtifactError(f"{target} is reached through a link: nothing was removed")
        with suppress(FileNotFoundError):
            if target.is_dir() and not target.is_symlink():
                shutil.rmtree(target)
            else:
                target.unlink()
            fsync(target.parent)
        for folder in target.parents:
            if folder == root:
                return
            try:
                folder.rmdir()
            except OSError:
                return

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
        self._home = f"{name}/{ATTEMPTS}/{self.id}"
        self._may_stand = False
        store.check_there()
        if store.is_local:
            self.folder = Path(store._path, self._home)
        else:
            self.folder = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=scratch_folder()))
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
                    entries.append(FileEntry(path=relative, size=path.stat().st_size, sha256=file_digest(path)))
                except ValidationError:
                    raise ArtifactError(f"{relative!r} is no name for a file of an artifact: use plain text") from None
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
        try:
            self._make_durable(entries)
            # From here on a manifest may arrive that points to the files, even where its answer never does.
            self._may_stand = True
            if self._store.create(f"{self.name}/{MANIFEST}", manifest.encode()):
                return manifest, True
            # Asked, not concluded: to a request of ours whose answer was lost, the same request may be a second one.
            standing = self._store.manifest(self.name)
            if standing is not None and standing.attempt == self.id:
                return standing, True
            self._may_stand = False
        finally:
            self._take_back()
        if standing is None:
            raise TryAgainError(f"{self._store.uri(self.name)} was made and removed meanwhile: clear this task")
        return standing, False

    def _take_back(self) -> None:
        """Remove from S3 what is lost for certain; what only may be, the retention sweeps."""
        if self._store.is_local or self._may_stand:
            return
        with suppress(AnemoneError):
            self._store.remove_path(self._home)

    def _stands(self) -> bool:
        """Whether the artifact is this attempt; asked of the store, since a signal may come just after the commit."""
        try:
            standing = self._store.manifest(self.name)
        except ArtifactError:
            return True
        return standing is not None and standing.attempt == self.id

    def _make_durable(self, entries: tuple[FileEntry, ...]) -> None:
        if (bucket := self._store._bucket) is not None:
            from include.artifacts.s3 import Upload

            files = [
                Upload(self.files / entry.path, f"{self._home}/{FILES}/{entry.path}", entry.size, entry.sha256)
                for entry in entries
            ]
            if self.events.exists():
                size, sha256 = self.events.stat().st_size, file_digest(self.events)
                files.append(Upload(self.events, f"{self._home}/{EVENTS}", size, sha256))
            bucket.upload(files)
            return
        for entry in entries:
            fsync(self.files / entry.path)
        for folder in {(self.files / entry.path).parent for entry in entries} | {self.files, self.folder}:
            fsync(folder)


def _is_plain_file(root: Path, relative: str, size: int) -> bool:
    """Whether `root/relative` is a regular file of `size` bytes that is reached through no link below `root`."""
    at = root
    for part in PurePosixPath(relative).parts:
        at /= part
        if at.is_symlink():
            return False
    return at.is_file() and at.stat().st_size == size


def _walk(root: Path, folder: Path) -> Iterator[Entry]:
    """Others write here meanwhile: what vanishes is left out, and anything else that cannot be read is an error."""
    try:
        entries = list(os.scandir(folder))
    except FileNotFoundError:
        return
    for entry in entries:
        try:
            status = entry.stat(follow_symlinks=False)
        except FileNotFoundError:
            continue
        is_folder = entry.is_dir(follow_symlinks=False)
        yield Entry(
            path=Path(entry.path).relative_to(root).as_posix(),
            bytes=0 if is_folder else status.st_size,
            modified=datetime.fromtimestamp(status.st_mtime, UTC),
            is_folder=is_folder,
        )
        if is_folder:
            yield from _walk(root, Path(entry.path))
