"""What the page on memory needs beside the job: a memory cgroup, and rows that take some."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from include.specs.base import Artifact
from tests.jobs.models import conversation, jsonl

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


@pytest.fixture
def long_rows(base_folder: Path, make_artifact: Callable[..., Artifact]) -> dict[str, Artifact]:
    """64 rows of very different lengths, up to 900 tokens, and a base with positions for them."""
    files = {f"model/{path.name}": path.read_bytes() for path in (base_folder / "model").iterdir() if path.is_file()}
    shape = json.loads(files["model/config.json"]) | {"max_position_embeddings": 1024}
    rows = [
        conversation(
            f"row-{n}", "get pod " + "x" * (800 if n % 2 else 20 * (n % 9)), f"kubectl get web-{n % 30} -n prod"
        )
        for n in range(64)
    ]
    data = {"train.jsonl": jsonl(rows), "validation.jsonl": jsonl(rows[:4])}
    return {
        "base": make_artifact("long-base", files | {"model/config.json": json.dumps(shape)}),
        "data": make_artifact("long-rows", data),
    }


def data_bytes(pid: int) -> int:
    """Bytes of a process's private writable memory (what RLIMIT_DATA counts)."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmData")).split()[1]) * 1024
