"""The artifact store on S3 (`s3://`): a conditional put commits, and files are copied through the scratch folder."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from errno import EDQUOT, ENOSPC
from functools import partial
from pathlib import Path

from include.artifacts.backend import EVENTS, FILES, Entry, attempt_path, files_path
from include.artifacts.manifest import MANIFEST, REMEDY, FileEntry, Manifest
from include.artifacts.naming import file_digest
from include.artifacts.s3.access import Access
from include.artifacts.s3.bucket import Bucket
from include.artifacts.s3.transfer import Download, Upload, download, upload
from include.errors import AnemoneError, ArtifactError, ConfigurationError, TryAgainError

SCRATCH = "ANEMONE_SCRATCH"
"""Environment variable: the folder for copies of what lies on S3; where it is not set, TMPDIR's."""


def scratch_folder() -> Path:
    """Return the folder for copies of what lies on S3: that of ANEMONE_SCRATCH, or that of TMPDIR.

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


class S3Backend:
    """The objects below `root` (`s3://bucket/prefix`)."""

    def __init__(self, root: str, access: Access) -> None:
        self._root = root
        self._bucket = Bucket(root, access)

    def check_reachable(self) -> None:
        """Do nothing: a bucket that cannot be reached answers no request as one that holds nothing would."""

    def read(self, path: str) -> bytes:
        return self._bucket.read(path)

    def read_plain(self, path: str, *, at_most: int) -> bytes:
        return self._bucket.read(path, at_most=at_most)

    def create(self, path: str, data: bytes) -> bool:
        return self._bucket.create(path, data)

    def touch(self, path: str) -> None:
        self._bucket.put(path, b"")

    def names(self, prefix: str) -> list[str]:
        names = self._bucket.folders(prefix)
        manifests = self._bucket.each([partial(self._bucket.file, f"{name}/{MANIFEST}") for name in names])
        return [name for name, manifest in zip(names, manifests, strict=True) if manifest is not None]

    def listing(self, below: str) -> Iterator[Entry]:
        for found in self._bucket.walk(below):
            yield Entry(found.path, found.bytes, found.modified, is_folder=False)

    def remove(self, path: str) -> None:
        self._bucket.delete(path)

    @contextmanager
    def open_files(self, manifest: Manifest) -> Iterator[Path]:
        """Yield a copy in the scratch folder, and remove it afterwards."""
        with tempfile.TemporaryDirectory(prefix=f"{manifest.name}-", dir=scratch_folder()) as scratch:
            self._download(manifest, Path(scratch))
            yield Path(scratch)

    def lay_out(self, manifest: Manifest, folder: Path) -> None:
        folder.mkdir(parents=True)
        try:
            self._download(manifest, folder)
        except BaseException:
            shutil.rmtree(folder)
            raise

    def attempt(self, name: str, attempt: str) -> S3Attempt:
        folder = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=scratch_folder()))
        return S3Attempt(folder, self._bucket, attempt_path(name, attempt))

    def _download(self, manifest: Manifest, folder: Path) -> None:
        """Fetch an artifact's files and verify each. One that arrives altered is fetched once more."""
        needed, free = sum(entry.size for entry in manifest.files), shutil.disk_usage(folder).free
        if needed > free:
            raise TryAgainError(
                f"{self._root}/{manifest.name} needs {needed:,} bytes in {folder.parent}, where {free:,} are free: "
                f"free some space there, or name another folder in {SCRATCH}"
            )
        missing: Sequence[FileEntry] = manifest.files
        for _ in range(2):
            missing = self._fetch(manifest, missing, folder)
            if not missing:
                return
        raise ArtifactError(
            f"{self._root}/{manifest.name}: {missing[0].path} was altered after its commit (its sha256 differs); "
            f"{REMEDY}"
        )

    def _fetch(self, manifest: Manifest, entries: Sequence[FileEntry], folder: Path) -> list[FileEntry]:
        """Fetch `entries` and return those that did not arrive as they were committed."""
        top = files_path(manifest)
        for parent in {(folder / entry.path).parent for entry in entries}:
            parent.mkdir(parents=True, exist_ok=True)
        downloads = [Download(f"{top}/{entry.path}", folder / entry.path, entry.size) for entry in entries]
        try:
            download(self._bucket, downloads)
        except FileNotFoundError as error:
            path = str(error.filename).removeprefix(f"{top}/")
            raise ArtifactError(f"{self._root}/{manifest.name}: {path} is missing; {REMEDY}") from None
        except OSError as error:
            if error.errno not in (ENOSPC, EDQUOT):
                raise
            raise TryAgainError(
                f"{folder.parent} became full while {self._root}/{manifest.name} was fetched: free some space there, "
                f"or name another folder in {SCRATCH}"
            ) from None
        digests = self._bucket.each([partial(file_digest, folder / entry.path) for entry in entries])
        return [entry for entry, found in zip(entries, digests, strict=True) if found != entry.sha256]


class S3Attempt:
    """An attempt that is written in the scratch folder, and uploaded when it is complete."""

    def __init__(self, folder: Path, bucket: Bucket, path: str) -> None:
        self.folder = folder
        self._bucket = bucket
        self._path = path

    def publish(self, entries: Sequence[FileEntry], on_progress: Callable[[], None]) -> None:
        files = [
            Upload(self.folder / FILES / entry.path, f"{self._path}/{FILES}/{entry.path}", entry.size, entry.sha256)
            for entry in entries
        ]
        events = self.folder / EVENTS
        if events.exists():
            files.append(Upload(events, f"{self._path}/{EVENTS}", events.stat().st_size, file_digest(events)))
        upload(self._bucket, files, on_progress)

    def withdraw(self) -> None:
        # What cannot be deleted now is swept later, as an attempt that no manifest points to.
        with suppress(AnemoneError):
            self._bucket.delete(self._path)

    def close(self, committed: Callable[[], bool]) -> None:
        """Remove the local copies, whatever became of the attempt."""
        shutil.rmtree(self.folder, ignore_errors=True)
