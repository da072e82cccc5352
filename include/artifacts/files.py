"""The artifact store on a file system (`file://`): a hard link commits, and links are never followed."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath

from include.artifacts.backend import FILES, Entry, attempt_path, files_path
from include.artifacts.manifest import MANIFEST, REMEDY, FileEntry, Manifest
from include.artifacts.naming import file_digest
from include.durable import fsync
from include.errors import ArtifactError, ConfigurationError, TryAgainError


class FileBackend:
    """The folder that `root` (`file:///…`) names.

    Args:
        existing: the folder was made before; where it is missing, it is not mounted or was renamed, and nothing is
            written into a new folder of its name.
    """

    def __init__(self, root: str, *, existing: bool) -> None:
        if not root.startswith("file:///"):
            raise ConfigurationError(
                f"the store {root!r} is not a URI that a store can have: write file:///path or s3://bucket/prefix"
            )
        self._root = root
        self._folder = Path(root.removeprefix("file://"))
        self._existing = existing

    def check_reachable(self) -> None:
        if self._existing and not self._folder.is_dir():
            raise TryAgainError(
                f"the store {self._root} is not there: mount it, or put its folder back; tasks try again meanwhile"
            )

    def read(self, path: str) -> bytes:
        with self._absent_only_if_reachable():
            return (self._folder / path).read_bytes()

    def read_plain(self, path: str, *, at_most: int) -> bytes:
        name, *below = PurePosixPath(path).parts
        # The artifact's own folder may be a link: somebody moved it to another disk.
        target, linked = self._folder / name, False
        for part in below:
            target /= part
            linked = linked or target.is_symlink()
        with self._absent_only_if_reachable():
            found = target.lstat()
        # A link may lead anywhere, and a pipe or a device never ends.
        if linked or not stat.S_ISREG(found.st_mode) or found.st_size > at_most:
            raise ArtifactError(
                f"{self._root}/{path} is not the file that was committed (a link, a special file, or {found.st_size:,} "
                f"bytes long); the artifact was damaged after its commit: {REMEDY}"
            )
        return self.read(path)

    def create(self, path: str, data: bytes) -> bool:
        self.check_reachable()
        target = self._folder / path
        while True:
            target.parent.mkdir(parents=True, exist_ok=True)
            # Another may remove the empty folder in between.
            with suppress(FileNotFoundError):
                descriptor, temporary = tempfile.mkstemp(dir=target.parent, prefix=".")
                break
        try:
            with os.fdopen(descriptor, "wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            os.link(temporary, target)
        except FileExistsError:
            return False
        finally:
            Path(temporary).unlink()
        fsync(target.parent)
        return True

    def touch(self, path: str) -> None:
        self.check_reachable()
        target = self._folder / path
        while True:
            target.parent.mkdir(parents=True, exist_ok=True)
            # A sweep may remove the empty folder in between.
            with suppress(FileNotFoundError):
                target.touch()
                return

    def names(self, prefix: str) -> list[str]:
        found = [path.parent.name for path in self._folder.glob(f"{prefix}*/{MANIFEST}")]
        if not found:
            self.check_reachable()
        return found

    def listing(self, below: str) -> Iterator[Entry]:
        self.check_reachable()
        return self._walk(self._folder / below)

    def remove(self, path: str) -> None:
        target = self._folder / path
        above = [folder for folder in target.parents if folder.is_relative_to(self._folder) and folder != self._folder]
        if any(folder.is_symlink() for folder in above):
            raise ArtifactError(f"{target} is reached through a link: nothing was removed")
        with suppress(FileNotFoundError):
            if target.is_dir() and not target.is_symlink():
                shutil.rmtree(target)
            else:
                target.unlink()
            fsync(target.parent)
        for folder in above:
            try:
                folder.rmdir()
            except OSError:  # it holds something else
                return

    @contextmanager
    def open_files(self, manifest: Manifest) -> Iterator[Path]:
        """Yield the files in place."""
        folder = self._folder / files_path(manifest)
        self._verify(folder, manifest)
        yield folder

    def lay_out(self, manifest: Manifest, folder: Path) -> None:
        with self.open_files(manifest) as files:
            shutil.copytree(files, folder)

    def attempt(self, name: str, attempt: str) -> FileAttempt:
        self.check_reachable()
        folder = self._folder / attempt_path(name, attempt)
        folder.mkdir(parents=True)
        return FileAttempt(folder)

    @contextmanager
    def _absent_only_if_reachable(self) -> Iterator[None]:
        """Raise TryAgainError where a file was not found because the store cannot be reached."""
        try:
            yield
        except FileNotFoundError:
            self.check_reachable()
            raise

    def _verify(self, folder: Path, manifest: Manifest) -> None:
        def refusal(path: str, problem: str) -> ArtifactError:
            return ArtifactError(f"{self._root}/{manifest.name}: {path} {problem}; {REMEDY}")

        for path in (folder, folder.parent, folder.parent.parent):
            if path.is_symlink():
                raise refusal(path.name, "is a link, and an artifact holds plain files only")
        found = set()
        for path in folder.rglob("*"):
            relative = path.relative_to(folder).as_posix()
            if path.is_symlink() or not (path.is_file() or path.is_dir()):
                raise refusal(relative, "is a link or a special file, and an artifact holds plain files only")
            if path.is_file():
                found.add(relative)
        for entry in manifest.files:
            path = folder / entry.path
            if entry.path not in found:
                self.check_reachable()
                raise refusal(entry.path, "is missing")
            size = path.stat().st_size
            if size != entry.size:
                raise refusal(entry.path, f"has {size} bytes, its manifest says {entry.size}")
            if file_digest(path) != entry.sha256:
                raise refusal(entry.path, "was altered after its commit (its sha256 differs)")
        # A library that is given the folder would read it, too: a second set of weights, an adapter, a template.
        if unlisted := sorted(found - {entry.path for entry in manifest.files}):
            raise ArtifactError(
                f"{self._root}/{manifest.name}: {unlisted[0]!r} was added after its commit (its manifest does not list "
                f"it): remove {folder / unlisted[0]}"
            )

    def _walk(self, folder: Path) -> Iterator[Entry]:
        """Yield all below `folder`. Others write meanwhile: what vanishes is left out; any other error is raised."""
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
                path=Path(entry.path).relative_to(self._folder).as_posix(),
                bytes=0 if is_folder else status.st_size,
                modified=datetime.fromtimestamp(status.st_mtime, UTC),
                is_folder=is_folder,
            )
            if is_folder:
                yield from self._walk(Path(entry.path))


class FileAttempt:
    """An attempt that is written where its files will stay; its event log stays also when it fails."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def publish(self, entries: Sequence[FileEntry], on_progress: Callable[[], None]) -> None:
        files = [self.folder / FILES / entry.path for entry in entries]
        for path in (*files, *({path.parent for path in files} | {self.folder / FILES, self.folder})):
            fsync(path)
            on_progress()

    def withdraw(self) -> None:
        """Leave everything to `close`: nothing was written elsewhere."""

    def close(self, committed: Callable[[], bool]) -> None:
        if not committed():
            shutil.rmtree(self.folder / FILES, ignore_errors=True)
