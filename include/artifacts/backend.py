"""What the artifact store needs of a file system or of S3, and what the two write alike."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Protocol

from include.artifacts.manifest import FileEntry, Manifest

ATTEMPTS = "attempts"
FILES = "files"
EVENTS = "events.jsonl"


@dataclass(frozen=True)
class Entry:
    """A file or folder of the store; `path` is relative to its root. A link is a file here, and never followed."""

    path: str
    bytes: int
    modified: datetime
    is_folder: bool


class AttemptFolder(Protocol):
    """The place of one attempt at an artifact.

    Attributes:
        folder: a local one, which exists; the artifact's files go to `FILES` in it, the job's events to `EVENTS`.
    """

    folder: Path

    def publish(self, entries: Sequence[FileEntry], on_progress: Callable[[], None]) -> None:
        """Store the files durably at the paths of a manifest.

        Args:
            on_progress: called after each file, and each part of a large one, that is stored; by several threads.
        """

    def withdraw(self) -> None:
        """Remove what `publish` stored outside the folder: no manifest points to it. Raise no AnemoneError."""

    def close(self, committed: Callable[[], bool]) -> None:
        """Remove the local files that nobody needs; `committed` returns whether the artifact is this attempt."""


class Backend(Protocol):
    """A file system or a bucket. Every path is relative to the store's root.

    Every method raises TryAgainError where the store cannot be reached, and ConfigurationError where it never can be.
    """

    def check_reachable(self) -> None:
        """Raise TryAgainError where the store, which exists, cannot be reached."""

    def read(self, path: str) -> bytes:
        """Return the bytes at `path`. Raises FileNotFoundError."""

    def read_plain(self, path: str, *, at_most: int) -> bytes:
        """Return the bytes of a file of an artifact, whose path starts with the artifact's name.

        Raises:
            FileNotFoundError: there is none.
            ArtifactError: it is longer than `at_most` bytes, is no plain file, or is reached through a link.
        """

    def create(self, path: str, data: bytes) -> bool:
        """Write a file atomically and durably unless there is one; return whether this call wrote it."""

    def touch(self, path: str) -> None:
        """Make an empty file, or set the time of the one that is there to now."""

    def names(self, prefix: str) -> list[str]:
        """Return the names, starting with `prefix`, of the folders at the root that hold a manifest."""

    def listing(self, below: str) -> Iterable[Entry]:
        """Return everything below a folder; nothing where there is no such folder."""

    def remove(self, path: str) -> None:
        """Remove a file, or a folder with all that is in it, durably; nothing happens where there is none.

        Raises:
            ArtifactError: it is reached through a link.
        """

    def open_files(self, manifest: Manifest) -> AbstractContextManager[Path]:
        """Yield a local folder with the verified files of an artifact; errors as of `Store.open_files`."""

    def lay_out(self, manifest: Manifest, folder: Path) -> None:
        """Copy the verified files of an artifact into `folder`, which must not exist; errors as of `open_files`."""

    def attempt(self, name: str, attempt: str) -> AttemptFolder:
        """Return a new folder for an attempt at the artifact called `name`."""


def attempt_path(name: str, attempt: str) -> str:
    """Return where an attempt's files and events lie."""
    return f"{name}/{ATTEMPTS}/{attempt}"


def files_path(manifest: Manifest) -> str:
    """Return the folder of the files that a manifest lists."""
    return f"{attempt_path(manifest.name, manifest.attempt)}/{FILES}"
