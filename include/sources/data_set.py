"""The files of a data set, on a file system or on S3, and their fingerprints."""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from include.errors import ConfigurationError, DataError
from include.sources.fingerprint import Fingerprint, fingerprint_of

if TYPE_CHECKING:
    from include.artifacts.s3 import Access

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
"""No path holds a NUL; a name with one of the others would write lines of its own into a log."""

_PACKED = (".jsonl.gz", ".jsonl.zst", ".jsonl.bz2", ".jsonl.xz", ".jsonl.lz4", ".jsonl.zip")


def fingerprints(source: str, access: Access | None = None) -> tuple[Fingerprint, ...]:
    """Return one fingerprint a file of the data set at `source`, sorted by path.

    Args:
        source: a JSONL file or a folder of `*.jsonl` shards: an absolute path, `file://…` or `s3://…`. Files whose
            name starts with a dot are left out: that is how writers name what is not finished.
        access: how S3 is reached; None: with this process's own credentials.

    Raises:
        ConfigurationError: a relative path, one with control characters, or a scheme other than these; a bucket that
            is missing or denied.
        TryAgainError: S3 cannot be reached.
        DataError: there is no such file, it is no regular file, it may not be read, the folder holds no `*.jsonl`, or
            it holds packed shards, which would be missed beside the others.
    """
    if _CONTROL.search(source):
        raise ConfigurationError(f"{source!r}: a path with control characters is not accepted; correct or rename it")
    scheme, separator, _ = source.partition("://")
    if separator and scheme == "s3":
        return _on_s3(source, access)
    if separator and scheme != "file":
        raise ConfigurationError(f"{source}: data is read from a local path, file:// or s3://, not from {scheme}://")
    path = Path(source.removeprefix("file://"))
    if not path.is_absolute():
        raise ConfigurationError(f"{source}: a relative path is another file to every process; give an absolute one")
    return _on_file_system(path)


def _on_file_system(path: Path) -> tuple[Fingerprint, ...]:
    try:
        if not path.is_dir():
            return (_of_file(path),)
        shards = _shards(str(path), (entry.name for entry in path.iterdir()))
        return tuple(_of_file(path / shard) for shard in shards)
    except PermissionError as error:
        raise DataError(f"{error.filename}: no permission to read it; change its mode or owner") from None
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise DataError(f"{error.filename}: a link that leads back to itself; link it to the data") from None
        raise DataError(f"{error.filename}: cannot be looked at ({error.strerror}); check the path") from None


def _shards(folder: str, names: Iterable[str]) -> list[str]:
    visible = sorted(name for name in names if not name.startswith("."))
    if packed := [name for name in visible if name.endswith(_PACKED)]:
        raise DataError(f"{folder}/{packed[0]}: packed shards are not read; unpack it, or move it out of the folder")
    shards = [name for name in visible if name.endswith(".jsonl")]
    if not shards:
        raise DataError(f"{folder}: the folder holds no *.jsonl file; put the shards there, or name one file")
    return shards


def _of_file(path: Path) -> Fingerprint:
    try:
        str(path).encode()
    except UnicodeEncodeError:
        shown = os.fsencode(path).decode("utf-8", "backslashreplace")
        raise DataError(f"{shown}: the name is not UTF-8, so no spec can hold it; rename it") from None
    try:
        found = path.stat()
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such file; check the path, and that this machine sees it") from None
    if not stat.S_ISREG(found.st_mode):
        raise DataError(f"{path}: not a regular file; put the rows into one, so that they can be read again")
    if not os.access(path, os.R_OK):
        raise DataError(f"{path}: no permission to read it; change its mode or owner")
    return fingerprint_of(str(path), found)


def _on_s3(source: str, access: Access | None) -> tuple[Fingerprint, ...]:
    from include.artifacts.s3 import Access, Bucket

    folder = Bucket(source, access or Access())
    place = source.rstrip("/")
    # Listed first: where there is no such bucket, this says so.
    named = {found.path: found for found in folder.files() if ".jsonl" in found.path}
    if named:
        return tuple(
            Fingerprint(path=f"{place}/{name}", size=named[name].bytes, version=named[name].version)
            for name in _shards(source, named)
        )
    above, _, name = place.rpartition("/")
    found = Bucket(above, access or Access()).file(name) if above != "s3:/" else None
    if found is None:
        raise DataError(f"{source}: there is no such object, and no *.jsonl below it; check bucket and prefix")
    return (Fingerprint(path=place, size=found.bytes, version=found.version),)
