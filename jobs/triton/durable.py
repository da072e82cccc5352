"""What has to be on the disk before anybody relies on it: files and folders outlive a power loss."""

from __future__ import annotations

import os
from pathlib import Path


def fsync(path: Path) -> None:
    """One file's bytes, or one folder's names."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_tree(folder: Path) -> None:
    """A folder and everything below it."""
    for path in (folder, *folder.rglob("*")):
        fsync(path)
