"""The process of one rank: it trains, sends heartbeats, and leaves its failure to the job's process as a file."""

from __future__ import annotations

import ctypes
import json
import logging
import os
import pickle
import shutil
import signal
import sys
import time
import traceback
import warnings
from errno import ENOSPC
from pathlib import Path
from typing import Any

from include.errors import AnemoneError, ExitCode, StoppedError
from jobs.finetune import hang, memory
from jobs.finetune.heartbeat import Heartbeats, HeartbeatSender
from jobs.finetune.memory import MemoryExhaustedError
from jobs.finetune.plan import Plan, Result

FAILURE_BYTES = 1 << 16
"""Size of a rank's failure file, whose space is reserved at the start: a failure on a full disk is reported, too."""

_FULL_BYTES = 1 << 16
"""Free space below which a failed write is taken to have failed because the disk is full."""

_PR_SET_PDEATHSIG = 1


def silence_libraries() -> None:
    """Keep warnings about optional GPU packages that are not installed out of the task log."""
    warnings.simplefilter("ignore")
    for name in ("torchao", "torch.utils._pytree", "transformers"):
        logging.getLogger(name).setLevel(logging.ERROR)


def run_rank(plan: Plan, parent: int, first: int) -> Result:
    """Train as one rank. Called by torch's elastic agent as the work of a process of its own.

    Args:
        parent: process id of the job's process, with which this one ends.
        first: number of the node's first rank.
    """
    _die_with_parent(parent)
    signal.signal(signal.SIGTERM, _stop)
    _prefer_for_oom_kill()
    rank = int(os.environ["RANK"])
    hang.dump_stacks_on_request(rank, plan.scratch)
    heartbeat = HeartbeatSender(Heartbeats(heartbeat_file(plan)), rank - first)
    events = events_file(plan)

    def report(event: str, **fields: Any) -> None:
        if rank == 0:
            with events.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps([event, fields]) + "\n")

    silence_libraries()
    from torch.distributed.checkpoint.api import CheckpointException

    try:
        from jobs.finetune.recipe import train

        return train(plan, report, heartbeat)
    except (Exception, CheckpointException) as error:  # the second is a BaseException
        failure = _as_failure(plan, rank, error)
        with failure_file(plan, rank).open("r+b") as stream:
            stream.write(pickle.dumps((time.time(), failure)))
        sys.exit(int(getattr(failure, "exit_code", ExitCode.FAULT)))
    finally:
        heartbeat.end()


def _as_failure(plan: Plan, rank: int, error: BaseException) -> Exception:
    """Return an error in a form that the job's process can unpickle and act on."""
    if isinstance(error, AnemoneError):
        return error
    traceback.print_exc()
    message = f"rank {rank}: {type(error).__name__}: {' '.join(str(error).split())[:2000]}"
    if memory.is_exhausted(error):
        return MemoryExhaustedError(f"memory ran out ({message[:300]})")
    store = plan.spec.output.store.removeprefix("file://")
    full = [folder for folder in (str(plan.scratch.parent), store) if _is_full(folder)]
    # Some of torch's writers say only that a write failed; others say why, and have removed what they wrote.
    if full or os.strerror(ENOSPC) in str(error):
        return OSError(ENOSPC, os.strerror(ENOSPC), full[0] if full else f"{plan.scratch.parent} or {store}")
    return error if isinstance(error, OSError) else RuntimeError(message)


def _is_full(folder: str) -> bool:
    return Path(folder).is_dir() and shutil.disk_usage(folder).free < _FULL_BYTES


def _prefer_for_oom_kill() -> None:
    """Make the kernel, when memory runs out, kill a rank before the job's process, which can react to it."""
    Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")


def _die_with_parent(parent: int) -> None:
    """End this process when its parent ends, in whatever way."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(ExitCode.KILLED)


def _stop(_signal: int, _frame: object) -> None:
    raise StoppedError("stopped on request (SIGTERM) before the first step")


def failure_file(plan: Plan, rank: int) -> Path:
    """Return the path to which rank `rank` writes (time of its failure, its error), pickled."""
    return plan.scratch / f"rank{rank}.failure"


def events_file(plan: Plan) -> Path:
    """Return the path to which rank 0 appends its events, one JSON list [name, fields] a line."""
    return plan.scratch / "events.jsonl"


def heartbeat_file(plan: Plan) -> Path:
    """Return the path of the file that holds the heartbeats of the node's ranks."""
    return plan.scratch / "heartbeats"
