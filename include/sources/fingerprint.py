"""Fingerprints of files: enough to tell, without reading a file, that it changed."""

from __future__ import annotations

import os

from include.model import Model


class Fingerprint(Model):
    """What the file system (or object store) says about one source file without reading it."""

    path: str
    size: int
    version: str
    """Changes whenever the file does: inode, mtime and ctime in ns on a file system, the ETag on S3."""


def fingerprint_of(path: str, status: os.stat_result) -> Fingerprint:
    """Return the fingerprint of a file of a file system, to be called `path`."""
    version = f"{status.st_ino}-{status.st_mtime_ns}-{status.st_ctime_ns}"
    return Fingerprint(path=path, size=status.st_size, version=version)
