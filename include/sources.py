"""What a data set's files look like from outside: enough to tell, without reading them, that they changed."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import fsspec

from include.errors import ConfigurationError, DataError
from include.specs.ingest import Fingerprint


def fingerprints(source: str) -> tuple[Fingerprint, ...]:
    """One fingerprint a file of the data set at `source`, sorted by path.

    Args:
        source: a JSONL file or a folder of `*.jsonl` shards: an absolute path, `file://…` or `s3://…`. Files whose
            name starts with a dot are left out: that is how writers name what is not finished.

    Raises:
        ConfigurationError: a relative path, or a scheme other than these.
        DataError: nothing is there, it is no regular file, it may not be read, or the folder holds no `*.jsonl`.
    """
    scheme, separator, _ = source.partition("://")
    if separator and scheme == "s3":
        return _on_object_store(source)
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
        shards = sorted(shard for shard in path.glob("*.jsonl") if not shard.name.startswith("."))
    except PermissionError as error:
        raise DataError(f"{error.filename}: no permission to look at it; change its mode or owner") from None
    if not shards:
        raise DataError(f"{path}: the folder holds no *.jsonl file; put the shards there, or name one file")
    return tuple(_of_file(shard) for shard in shards)


def _of_file(path: Path) -> Fingerprint:
    try:
        found = path.stat()
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such file; check the path, and that this machine sees it") from None
    if not stat.S_ISREG(found.st_mode):
        raise DataError(f"{path}: not a regular file; put the rows into one, so that they can be read again")
    if not os.access(path, os.R_OK):
        raise DataError(f"{path}: no permission to read it; change its mode or owner")
    version = f"{found.st_ino}-{found.st_mtime_ns}-{found.st_ctime_ns}"
    return Fingerprint(path=str(path), size=found.st_size, version=version)


def _on_object_store(source: str) -> tuple[Fingerprint, ...]:
    files, root = fsspec.core.url_to_fs(source)
    files.invalidate_cache()
    try:
        if files.isfile(root):
            found = [files.info(root)]
        else:
            found = [
                info
                for path, info in sorted(files.glob(f"{root.rstrip('/')}/*.jsonl", detail=True).items())
                if info["type"] == "file" and not path.rsplit("/", 1)[-1].startswith(".")
            ]
    except PermissionError:
        raise DataError(f"{source}: no permission to read it; check the credentials of this platform") from None
    if not found:
        raise DataError(f"{source}: there is no such object, and no *.jsonl below it; check bucket and prefix")
    return tuple(
        Fingerprint(path=f"s3://{info['name']}", size=info["size"], version=info["ETag"].strip('"')) for info in found
    )
