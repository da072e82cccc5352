"""A limit on the memory of processes, as a container has one."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

_V1 = Path("/sys/fs/cgroup/memory")
_V2 = Path("/sys/fs/cgroup")


@dataclass
class MemoryLimit:
    """A memory cgroup (version 1 or 2), as a container has one."""

    folder: Path

    @property
    def _two(self) -> bool:
        return (self.folder / "memory.max").exists()

    def hold(self, pid: int) -> None:
        """Put a process, and those that it will start, into it."""
        (self.folder / "cgroup.procs").write_text(str(pid))

    def set(self, limit: int) -> None:
        """The limit, in bytes."""
        (self.folder / ("memory.max" if self._two else "memory.limit_in_bytes")).write_text(str(limit))

    @property
    def used(self) -> int:
        """Bytes in use now."""
        return int((self.folder / ("memory.current" if self._two else "memory.usage_in_bytes")).read_text())

    @property
    def peak(self) -> int:
        """The most bytes that were in use."""
        return int((self.folder / ("memory.peak" if self._two else "memory.max_usage_in_bytes")).read_text())


@pytest.fixture
def memory_limit() -> Iterator[MemoryLimit]:
    folder = (_V1 if _V1.is_dir() else _V2) / f"anemone-test-{os.getpid()}"
    try:
        folder.mkdir()
    except OSError as error:
        pytest.skip(f"a memory limit needs the right to make a cgroup (root): {error}")
    if not any((folder / name).exists() for name in ("memory.limit_in_bytes", "memory.max")):
        folder.rmdir()
        pytest.skip("a memory limit needs the memory controller of cgroups")
    yield MemoryLimit(folder)
    until = time.monotonic() + 10
    while (folder / "cgroup.procs").read_text().strip() and time.monotonic() < until:
        time.sleep(0.05)
    folder.rmdir()
