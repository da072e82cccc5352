"""Writes that survive a crash and a loss of power: a file is as it was before the write, or after it, never between."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from errno import EXDEV
from pathlib import Path
from typing import BinaryIO

_CHUNK_BYTES = 2**23
_FLUSH_BYTES = 2**26


def fsync(path: Path) -> None:
    """Flush a file's bytes, or a folder's names, to the disk, before anybody relies on them."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_tree(folder: Path) -> None:
    """Flush a folder and everything below it to the disk."""
    for path in (folder, *folder.rglob("*")):
        fsync(path)


def copy_tree(source: Path, target: Path, on_progress: Callable[[], None]) -> None:
    """Copy a folder of plain files to `target`, which must not exist; `on_progress` is called after each piece.

    What is copied is flushed in between: closing a file on NFS flushes all of it, in which nothing would be heard.
    """
    target.mkdir()
    for path in sorted(source.rglob("*")):
        copy = target / path.relative_to(source)
        if path.is_dir():
            copy.mkdir()
            continue
        with path.open("rb") as reader, copy.open("xb") as writer:
            unflushed = 0
            while chunk := reader.read(_CHUNK_BYTES):
                writer.write(chunk)
                unflushed += len(chunk)
                if unflushed >= _FLUSH_BYTES:
                    writer.flush()
                    os.fdatasync(writer.fileno())
                    unflushed = 0
                on_progress()


def move_tree(source: Path, target: Path, on_progress: Callable[[], None]) -> None:
    """Rename a folder of plain files; where `target` is on another file system, copy and remove it."""
    try:
        source.rename(target)
    except OSError as error:
        if error.errno != EXDEV:
            raise
        copy_tree(source, target, on_progress)
        shutil.rmtree(source)


def replace(path: Path, data: bytes) -> None:
    """Write a whole file atomically and durably, whatever stood there."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=".")
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    fsync(path.parent)


def append_line(path: Path, line: bytes) -> None:
    """Append a line durably. A torn line that a crash left at the end is cut off first."""
    with path.open("a+b") as stream:
        _cut_torn_line(stream)
        stream.write(line + b"\n")
        stream.flush()
        os.fsync(stream.fileno())


def remove(path: Path) -> None:
    """Remove a file durably; no error where it is gone already."""
    path.unlink(missing_ok=True)
    fsync(path.parent)


def set_aside(path: Path) -> Path:
    """Rename a file durably, so that nothing reads it again; return its new path."""
    aside = path.with_name(f"{path.name}.damaged")
    path.replace(aside)
    fsync(path.parent)
    return aside


def _cut_torn_line(stream: BinaryIO) -> None:
    end = stream.seek(0, os.SEEK_END)
    if not end:
        return
    stream.seek(end - 1)
    if stream.read(1) != b"\n":
        stream.seek(0)
        stream.truncate(stream.read().rfind(b"\n") + 1)
    stream.seek(0, os.SEEK_END)
