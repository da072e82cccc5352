"""Recognise a training that ran out of memory, and choose what to try next."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from include.errors import AnemoneError, ExitCode
from include.specs.finetune import Config

_WORDS = (
    "DefaultCPUAllocator: can't allocate memory",
    "std::bad_alloc",
    "CUDA out of memory",
    "Cannot allocate memory",
    # CPython's SystemError where there was no memory for the MemoryError either.
    "error return without exception set",
)
_CGROUPS = Path("/sys/fs/cgroup")
_VMSTAT = Path("/proc/vmstat")


class MemoryExhaustedError(AnemoneError):
    """A rank needed more memory than there is."""

    exit_code = ExitCode.KILLED


def is_exhausted(error: BaseException) -> bool:
    """Return whether a rank's error comes from a failed allocation (torch's allocators, C++, Python)."""
    import torch

    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(word in str(error) for word in _WORDS)


def kernel_kills() -> int | None:
    """Return how many processes of this cgroup the kernel has killed for want of memory, or None where it is unknown.

    Where the cgroup cannot be read, the count is the whole machine's: a neighbour's may be taken for one of ours.
    """
    for file in (*_own_counters(), _VMSTAT):
        try:
            lines = [line.split() for line in file.read_text(encoding="ascii").splitlines()]
        except OSError:
            continue
        for name, value in lines:
            if name == "oom_kill":
                return int(value)
    return None


def _own_counters() -> Iterator[Path]:
    """Yield the files in which this process's cgroup may count them, version 1 and version 2 (cgroups(7))."""
    try:
        groups = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for group in groups:
        _, controllers, path = group.split(":", 2)
        if "memory" in controllers.split(","):
            root, name = _CGROUPS / "memory", "memory.oom_control"
        elif not controllers:
            root, name = _CGROUPS, "memory.events"
        else:
            continue
        # A container may see the machine's path, and its own group at the root.
        yield from (root / path.lstrip("/") / name, root / name)


def smaller_micro_batch(config: Config, micro_batch: int) -> int | None:
    """Return the next micro-batch to try, in rows: half, or the next below that gives the same global batch.

    None where there is no smaller one.
    """
    for candidate in range(micro_batch // 2, 0, -1):
        if config.global_batch_size % (candidate * config.processes) == 0:
            return candidate
    return None
