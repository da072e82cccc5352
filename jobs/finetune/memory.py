"""Tell a training that ran out of memory from one that failed otherwise, and what to try next."""

from __future__ import annotations

from pathlib import Path

from include.errors import AnemoneError, ExitCode
from include.specs.finetune import Config

_WORDS = (
    "DefaultCPUAllocator: can't allocate memory",
    "std::bad_alloc",
    "CUDA out of memory",
    "Cannot allocate memory",
)
_VMSTAT = Path("/proc/vmstat")


class MemoryExhaustedError(AnemoneError):
    """A rank needed more memory than there is."""

    exit_code = ExitCode.KILLED


def is_exhausted(error: BaseException) -> bool:
    """Whether a rank's error says that it was given no memory: torch's allocators, C++, Python."""
    import torch

    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(word in str(error) for word in _WORDS)


def kernel_kills() -> int | None:
    """Processes that the kernel has killed for want of memory since it started, or None where it does not say.

    In a container these are the whole machine's: a neighbour's may be taken for one of ours.
    """
    try:
        lines = _VMSTAT.read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(value) for name, _, value in (line.partition(" ") for line in lines) if name == "oom_kill"), None)


def smaller(config: Config, micro_batch: int) -> int | None:
    """The next micro-batch to try, in rows: half, or the next below that gives the same global batch."""
    for candidate in range(micro_batch // 2, 0, -1):
        if config.global_batch_size % (candidate * config.processes) == 0:
            return candidate
    return None
