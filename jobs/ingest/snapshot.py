"""Copy the files of a data set byte by byte, while checking that they are whole and are JSON lines."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from include.errors import DataError, TryAgainError
from include.sources.data_set import fingerprints
from include.sources.fingerprint import Fingerprint
from jobs.ingest.lines import LineChecker

CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class Copied:
    """A file that was copied: its non-blank lines, the sha256 (hex) of its bytes, and whether they start with a BOM."""

    rows: int
    sha256: str
    byte_order_mark: bool


def await_unchanged(source: str, *, planned: tuple[Fingerprint, ...], seconds: float) -> tuple[Fingerprint, ...]:
    """Return the fingerprints of a source, once it has stayed the same for `seconds`.

    Raises:
        TryAgainError: it changed since the run was planned, or is still changing.
        DataError: a file is missing, empty, or may not be read.
    """
    files = fingerprints(source)
    if planned:
        _refuse(planned, files, when="after the run was planned")
    time.sleep(seconds)
    refuse_changed(source, files, when="while it was watched, so it is still being written")
    for file in files:
        if file.size == 0:
            raise DataError(f"{file.path}: the file is empty; write the rows into it, or remove it")
    return files


def refuse_changed(source: str, before: tuple[Fingerprint, ...], *, when: str) -> None:
    """Refuse a source that has changed.

    Raises:
        TryAgainError: names the file.
    """
    try:
        now = fingerprints(source)
    except DataError as error:
        raise TryAgainError(f"{source} changed {when}: {error}, then start again") from None
    _refuse(before, now, when=when)


def _refuse(before: tuple[Fingerprint, ...], now: tuple[Fingerprint, ...], *, when: str) -> None:
    old, new = ({file.path: file for file in files} for files in (before, now))
    for path in sorted(old.keys() | new.keys()):
        if path not in new:
            raise TryAgainError(f"{path} disappeared {when}: wait until the data set is complete, then start again")
        if path not in old:
            raise TryAgainError(f"{path} was added {when}: wait until the data set is complete, then start again")
        if old[path] != new[path]:
            sizes = f"{old[path].size} bytes, now {new[path].size}"
            raise TryAgainError(f"{path} changed {when} ({sizes}): wait until it is complete, then start again")


def copy(file: Fingerprint, target: Path, *, max_row_bytes: int) -> Copied:
    """Copy one file to `target`, checking its lines on the way.

    Raises:
        DataError: naming file, line and byte: not UTF-8, a NUL, a line over `max_row_bytes`, a truncated last line,
            no JSON objects, or no line at all.
        TryAgainError: more or fewer bytes than `file.size` could be read.
    """
    digest = hashlib.sha256()
    checker = LineChecker(file.path, max_row_bytes=max_row_bytes)
    read = 0
    with closing(_chunks(file.path)) as chunks, target.open("xb") as sink:
        for chunk in chunks:
            read += len(chunk)
            if read > file.size:
                break
            checker.feed(chunk)
            digest.update(chunk)
            sink.write(chunk)
    if read != file.size:
        raise TryAgainError(
            f"{file.path} changed while it was read ({file.size} bytes, now {read}): "
            "wait until it is complete, then start again"
        )
    checker.finish()
    return Copied(rows=checker.rows, sha256=digest.hexdigest(), byte_order_mark=checker.byte_order_mark)


def _chunks(path: str) -> Generator[bytes, None, None]:
    try:
        if path.startswith("s3://"):
            from include.artifacts.s3 import Access, Bucket

            folder, _, name = path.rpartition("/")
            yield from Bucket(folder, Access()).stream(name)
            return
        with Path(path).open("rb") as source:
            while chunk := source.read(CHUNK_BYTES):
                yield chunk
    except FileNotFoundError:
        raise TryAgainError(f"{path} disappeared before it was read: put it back, then start again") from None
