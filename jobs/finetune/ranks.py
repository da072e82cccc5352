"""Start the ranks of a training and end with their verdict.

One process trains in the job's own process. Several are started through torch's elastic agent, and the first failure
of a rank becomes the job's: its own exception where it raised one, 128 + n where signal n ended it.
"""

from __future__ import annotations

import ctypes
import json
import logging
import os
import pickle
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import Any

from include.errors import AnemoneError, ExitCode, StoppedError
from jobs.finetune.checkpoints import Report
from jobs.finetune.plan import Plan, Result

_GRACE_SECONDS = 120
"""How long ranks may take to save a checkpoint once they are told to stop."""

_PR_SET_PDEATHSIG = 1


class RankKilledError(AnemoneError):
    """A rank was ended by a signal; `exit_code` is 128 + its number, as a shell would say it."""

    def __init__(self, rank: int, number: int) -> None:
        super().__init__(
            f"rank {rank} was ended by signal {number} ({signal.Signals(number).name})"
            + (
                ", most likely for want of memory: lower local_batch_size or max_tokens"
                if number == signal.SIGKILL
                else ""
            )
        )
        self.exit_code = 128 + number


def launch(plan: Plan, report: Report) -> Result:
    """Train in `plan.spec.config.processes` ranks on this machine.

    Raises:
        AnemoneError: what the first failing rank raised, or `RankKilledError`.
        StoppedError: SIGTERM came; the ranks have saved.
    """
    if plan.spec.config.processes == 1:
        return _train(plan, report)
    return _elastic(plan, report)


def _train(plan: Plan, report: Report) -> Result:
    _quiet()
    from jobs.finetune.recipe import train

    return train(plan, report)


def _quiet() -> None:
    """Optional GPU packages that are not there are no news in a task log."""
    warnings.simplefilter("ignore")
    for name in ("torchao", "torch.utils._pytree", "transformers"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _elastic(plan: Plan, report: Report) -> Result:
    import torch
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    if torch.cuda.is_available():
        start_method = "spawn"
    else:
        # Forked ranks share the imports, 12 CPU-s each. CUDA does not survive a fork.
        start_method = "fork"
        _quiet()
        import jobs.finetune.recipe  # noqa: F401
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=plan.spec.config.processes,
        run_id=plan.spec.output.name,
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        local_addr="127.0.0.1",
        max_restarts=0,
        start_method=start_method,
        logs_specs=DefaultLogsSpecs(log_dir=str(plan.scratch / "ranks")),
        shutdown_timeout=_GRACE_SECONDS,
    )
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        with _relay(plan.scratch / "events.jsonl", report):
            return elastic_launch(config, _rank)(plan, os.getpid())[0]
    except SignalException as error:
        raise _first_of(_failures(plan)) or StoppedError(f"stopped on request ({error.sigval.name})") from None
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        raise _verdict(plan, rank, failure.exitcode) from None
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _rank(plan: Plan, parent: int) -> Result:
    """The work of one rank's process."""
    _die_with(parent)
    signal.signal(signal.SIGTERM, _stop)
    rank = int(os.environ["RANK"])
    events = plan.scratch / "events.jsonl"

    def tell(event: str, **fields: Any) -> None:
        if rank == 0:
            with events.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps([event, fields]) + "\n")

    try:
        return _train(plan, tell)
    except Exception as error:
        if not isinstance(error, AnemoneError):
            traceback.print_exc()
            if not isinstance(error, OSError):
                error = RuntimeError(f"rank {rank}: {type(error).__name__}: {error}")
        _failure_file(plan, rank).write_bytes(pickle.dumps((time.time(), error)))
        sys.exit(int(getattr(error, "exit_code", ExitCode.FAULT)))


def _die_with(parent: int) -> None:
    """End this process when its parent ends, however that ends."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(ExitCode.KILLED)


def _stop(_signal: int, _frame: object) -> None:
    raise StoppedError("stopped on request (SIGTERM) before the first step")


def _failure_file(plan: Plan, rank: int) -> Path:
    return plan.scratch / f"rank{rank}.failure"


def _failures(plan: Plan) -> dict[int, tuple[float, Exception]]:
    """By rank: when it failed, and with what."""
    ranks = range(plan.spec.config.processes)
    return {rank: pickle.loads(file.read_bytes()) for rank in ranks if (file := _failure_file(plan, rank)).exists()}


def _first_of(failures: dict[int, tuple[float, Exception]]) -> Exception | None:
    """The first failure with a meaning; a rank whose peer has gone fails too, with whatever gloo or NCCL says."""
    ordered = sorted(
        failures.values(), key=lambda failure: (not isinstance(failure[1], AnemoneError | OSError), failure[0])
    )
    return ordered[0][1] if ordered else None


def _verdict(plan: Plan, rank: int, exit_code: int) -> Exception:
    # The agent stops the survivors of a rank that was killed; that nobody asked this job to stop is known here.
    failures = {other: found for other, found in _failures(plan).items() if not isinstance(found[1], StoppedError)}
    first = _first_of(failures)
    if isinstance(first, AnemoneError | OSError):
        return first
    if exit_code < 0:
        return RankKilledError(rank, -exit_code)
    silent = [other for other in range(plan.spec.config.processes) if other not in failures]
    if silent:
        return RankKilledError(silent[0], signal.SIGKILL)
    assert first is not None
    return first


@contextmanager
def _relay(path: Path, report: Report) -> Iterator[None]:
    """Report the events that rank 0 appends to `path`, as they come."""
    path.touch()
    ended = Event()

    def follow() -> None:
        with path.open(encoding="utf-8") as stream:
            pending = ""
            while True:
                last = ended.is_set()
                pending += stream.read()
                *lines, pending = pending.split("\n")
                for line in lines:
                    event, fields = json.loads(line)
                    report(event, **fields)
                if last:
                    return
                ended.wait(0.2)

    thread = Thread(target=follow, name="events of rank 0", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
