"""Start the ranks of a training, watch over them, and end with their verdict.

They are started through torch's elastic agent, one is no exception: what a hanging or starved rank does to itself, the
job's own process outlives. The first failure of a rank becomes the job's: its own exception where it raised one, 128 +
n where signal n ended it.
"""

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
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from errno import ENOSPC
from functools import partial
from pathlib import Path
from threading import Event, Thread
from typing import Any

from include.artifacts.store import Store
from include.errors import AnemoneError, ExitCode, StoppedError, TryAgainError
from jobs.finetune import checkpoints, hang, memory
from jobs.finetune.checkpoints import Report
from jobs.finetune.memory import MemoryExhaustedError
from jobs.finetune.nodes import Nodes, RankKilledError, stopping_seconds
from jobs.finetune.plan import Plan, Result
from jobs.finetune.pulse import Heart, Pulse

_LINGER_SECONDS = 3.0
"""How long a hang that was found is left as it is: the node of the rank that is to blame finds it at that time, too."""

_SMALLER_TRIES = 3
"""How often a training that runs out of memory is tried again with a smaller micro-batch."""

_FAILURE_BYTES = 1 << 16
"""Room for a rank's failure, reserved while there is space: on a full disk it has to be told, too."""

_FULL_BYTES = 1 << 16
"""Free space below which a write that failed is taken to have failed for want of it."""

_PR_SET_PDEATHSIG = 1


def launch(plan: Plan, store: Store, report: Report, nodes: Nodes) -> Result:
    """Train in `plan.spec.config.processes` ranks, this node's share of them here.

    Where memory runs out, the training goes on from its last checkpoint with half the micro-batch, a few times; on all
    nodes, whichever it was.

    Raises:
        AnemoneError: what the first failing rank raised, or `RankKilledError`.
        MemoryExhaustedError: memory ran out, and there is no smaller micro-batch left to try.
        StoppedError: SIGTERM came; the ranks have saved.
        TryAgainError: a rank hung, or was killed from outside.
    """
    config, run = plan.spec.config, plan.spec.output.name
    plan = replace(plan, scratch=plan.scratch / "try-0")
    for number in range(_SMALLER_TRIES + 1):
        plan.scratch.mkdir()
        try:
            return nodes.agree(partial(_attempt, plan, report, nodes))
        except MemoryExhaustedError as error:
            rows = memory.smaller(config, plan.micro_batch)
            if rows is None or number == _SMALLER_TRIES:
                smaller = "" if rows is None else f", set finetune.local_batch_size: {rows}"
                raise MemoryExhaustedError(
                    f"{error}, with finetune.local_batch_size {plan.micro_batch} at last: give the job more memory"
                    f"{smaller}, or lower finetune.max_tokens"
                ) from None
            advice = f"finetune.local_batch_size: {rows}"
            report("out_of_memory", reason=str(error), local_batch_size=plan.micro_batch, next=rows, recipe=advice)
        scratch, resumed = plan.scratch.with_name(f"try-{number + 1}"), plan.scratch.with_name(f"resumed-{number + 1}")
        # The last try may hold gigabytes, and the restored checkpoint as many.
        shutil.rmtree(plan.scratch)
        if plan.resume is not None:
            shutil.rmtree(plan.resume)
        resume = nodes.agree(partial(checkpoints.restore, store, run, resumed, report), checkpoints.described)
        plan = replace(plan, scratch=scratch, micro_batch=rows, resume=resume)
    raise AssertionError


def _attempt(plan: Plan, report: Report, nodes: Nodes) -> Result:
    import torch
    from torch.distributed import DistError
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import RendezvousError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    ranks = nodes.ranks(plan.spec.config.processes)
    if torch.cuda.is_available():
        start_method = "spawn"
    else:
        # Forked ranks share the imports, 12 CPU-s each. CUDA does not survive a fork.
        start_method = "fork"
        _quiet()
        import jobs.finetune.recipe  # noqa: F401
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    if (interface := nodes.interface) is not None:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
    config = LaunchConfig(
        **nodes.rendezvous(),
        nproc_per_node=len(ranks),
        run_id=plan.spec.output.name,
        max_restarts=0,
        start_method=start_method,
        logs_specs=DefaultLogsSpecs(log_dir=str(plan.scratch / "ranks")),
        shutdown_timeout=max(1, int(stopping_seconds())),
    )
    for rank in ranks:
        with _failure_file(plan, rank).open("xb") as stream:
            os.posix_fallocate(stream.fileno(), 0, _FAILURE_BYTES)
    pulse = Pulse.create(_pulse_file(plan), len(ranks))
    watch = hang.Watch(
        pulse,
        ranks,
        plan.spec.config.hang_seconds,
        plan.scratch,
        of=plan.spec.config.processes,
        linger=_LINGER_SECONDS if nodes.count > 1 else 0.0,
    )
    kills = memory.kernel_kills()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        with (
            _relay(plan.scratch / "events.jsonl", report),
            hang.watching(watch),
            nodes.watched(partial(hang.end, pulse, len(ranks))) as others,
        ):
            return elastic_launch(config, _rank)(plan, os.getpid(), ranks.start)[ranks.start]
    except SignalException as error:
        raise _first_of(_failures(plan, ranks)) or StoppedError(f"stopped on request ({error.sigval.name})") from None
    except (DistError, RendezvousError) as error:
        raise TryAgainError(f"the ranks did not find each other ({error}): the next try begins again") from None
    except ChildFailedError as error:
        if (reason := watch.found or others.error) is not None:
            raise reason from None
        rank, failure = error.get_first_failure()
        raise _verdict(plan, ranks, rank, failure.exitcode, kills) from None
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _quiet() -> None:
    """Optional GPU packages that are not there are no news in a task log."""
    warnings.simplefilter("ignore")
    for name in ("torchao", "torch.utils._pytree", "transformers"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _rank(plan: Plan, parent: int, first: int) -> Result:
    """The work of one rank's process, on a node whose first rank is `first`."""
    _die_with(parent)
    signal.signal(signal.SIGTERM, _stop)
    _be_first_to_starve()
    rank = int(os.environ["RANK"])
    hang.answer(rank, plan.scratch)
    heart = Heart(Pulse(_pulse_file(plan)), rank - first)
    events = plan.scratch / "events.jsonl"

    def tell(event: str, **fields: Any) -> None:
        if rank == 0:
            with events.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps([event, fields]) + "\n")

    _quiet()
    from torch.distributed.checkpoint.api import CheckpointException

    try:
        from jobs.finetune.recipe import train

        return train(plan, tell, heart)
    except (Exception, CheckpointException) as error:  # the second is a BaseException
        said = _as_said(plan, rank, error)
        with _failure_file(plan, rank).open("r+b") as stream:
            stream.write(pickle.dumps((time.time(), said)))
        sys.exit(int(getattr(said, "exit_code", ExitCode.FAULT)))
    finally:
        heart.end()


def _as_said(plan: Plan, rank: int, error: BaseException) -> Exception:
    """A rank's error as the job's process can take it: picklable, and with a meaning where it has one."""
    if isinstance(error, AnemoneError):
        return error
    traceback.print_exc()
    sentence = f"rank {rank}: {type(error).__name__}: {' '.join(str(error).split())[:2000]}"
    if memory.is_exhausted(error):
        return MemoryExhaustedError(f"memory ran out ({sentence[:300]})")
    store = plan.spec.output.store.removeprefix("file://")
    full = [place for place in (str(plan.scratch.parent), store) if _is_full(place)]
    # Some of torch's writers say only that a write failed; others say why, and have removed what they wrote.
    if full or os.strerror(ENOSPC) in str(error):
        return OSError(ENOSPC, os.strerror(ENOSPC), full[0] if full else f"{plan.scratch.parent} or {store}")
    return error if isinstance(error, OSError) else RuntimeError(sentence)


def _is_full(folder: str) -> bool:
    return Path(folder).is_dir() and shutil.disk_usage(folder).free < _FULL_BYTES


def _be_first_to_starve() -> None:
    """Let the kernel, when memory runs out, end a rank before the job's process, which knows what to do about it."""
    Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")


def _die_with(parent: int) -> None:
    """End this process when its parent ends, however that ends."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(ExitCode.KILLED)


def _stop(_signal: int, _frame: object) -> None:
    raise StoppedError("stopped on request (SIGTERM) before the first step")


def _failure_file(plan: Plan, rank: int) -> Path:
    return plan.scratch / f"rank{rank}.failure"


def _failures(plan: Plan, ranks: range) -> dict[int, tuple[float, Exception]]:
    """By rank: when it failed, and with what."""
    told = {rank: _failure_file(plan, rank).read_bytes() for rank in ranks}
    return {rank: pickle.loads(found) for rank, found in told.items() if found.startswith(pickle.PROTO)}


def _first_of(failures: dict[int, tuple[float, Exception]]) -> Exception | None:
    """The first failure with a meaning; a rank whose peer has gone fails too, with whatever gloo or NCCL says."""
    ordered = sorted(
        failures.values(), key=lambda failure: (not isinstance(failure[1], AnemoneError | OSError), failure[0])
    )
    return ordered[0][1] if ordered else None


def _verdict(plan: Plan, ranks: range, rank: int, exit_code: int, kills: int | None) -> Exception:
    told = _failures(plan, ranks)
    # The agent stops the survivors of a rank that was killed; that nobody asked this job to stop is known here.
    failures = {other: found for other, found in told.items() if not isinstance(found[1], StoppedError)}
    first = _first_of(failures)
    if isinstance(first, AnemoneError | OSError):
        return first
    silent = [other for other in ranks if other not in told]
    if exit_code >= 0 and silent:
        if rank in silent:
            return RuntimeError(f"rank {rank} ended with exit code {exit_code} and without a word")
        rank, exit_code = silent[0], -signal.SIGKILL
    if exit_code == -signal.SIGKILL:
        return _killed(rank, kills)
    if exit_code < 0:
        name = signal.Signals(-exit_code).name
        return RankKilledError(f"rank {rank} was ended by signal {-exit_code} ({name})", 128 - exit_code)
    # All were stopped, and not by this process: another node was asked to.
    error = first or _first_of(told)
    assert error is not None
    return error


def _killed(rank: int, kills: int | None) -> Exception:
    if kills is not None and memory.kernel_kills() == kills:
        return TryAgainError(
            f"rank {rank} was killed (SIGKILL), and not by the kernel for want of memory: the next try goes on from "
            "the last checkpoint"
        )
    return MemoryExhaustedError(f"rank {rank} was killed (SIGKILL), most likely for want of memory")


def _pulse_file(plan: Plan) -> Path:
    return plan.scratch / "pulse"


@contextmanager
def _relay(path: Path, report: Report) -> Iterator[None]:
    """Report the events that rank 0 appends to `path`, as they come. What reporting raises is raised at the end."""
    path.touch()
    ended = Event()
    failed: list[Exception] = []

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

    def run() -> None:
        try:
            follow()
        except Exception as error:
            failed.append(error)

    thread = Thread(target=run, name="events of rank 0", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
    if failed:
        raise failed[0]
