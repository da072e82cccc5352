"""Start the ranks of a training, monitor them, and end with their first failure.

All ranks, a single one included, are started through torch's elastic agent, so the job's own process survives a rank
that hangs or runs out of memory. The first failure of a rank becomes the job's: its own exception where it raised one,
128 + n where signal n ended it.
"""

from __future__ import annotations

import json
import logging
import os
import pickle
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Event, Thread

from include.artifacts.store import Store
from include.errors import AnemoneError, StoppedError, TryAgainError
from jobs.finetune import checkpoints, hang, memory
from jobs.finetune.checkpoints import Report
from jobs.finetune.heartbeat import Heartbeats
from jobs.finetune.memory import MemoryExhaustedError
from jobs.finetune.node_failures import RankKilledError
from jobs.finetune.node_group import NodeGroup, stopping_seconds
from jobs.finetune.plan import Plan, Result
from jobs.finetune.rank import FAILURE_BYTES, events_file, failure_file, heartbeat_file, run_rank, silence_libraries

_LINGER_SECONDS = 3.0
"""Time between detecting a hang and ending it, in which the node of the rank to blame detects it, too."""

_SMALLER_TRIES = 3
"""How many times a training that runs out of memory is tried again with a smaller micro-batch."""


def launch(plan: Plan, store: Store, report: Report, nodes: NodeGroup) -> Result:
    """Train in `plan.spec.config.processes` ranks, this node's share of them here.

    Where memory runs out on any node, the training goes on from its last checkpoint with half the micro-batch on all of
    them, a few times.

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
            rows = memory.smaller_micro_batch(config, plan.micro_batch)
            if rows is None or number == _SMALLER_TRIES:
                smaller = "" if rows is None else f", set finetune.local_batch_size: {rows}"
                raise MemoryExhaustedError(
                    f"{error}, with finetune.local_batch_size {plan.micro_batch} at last: give the job more memory"
                    f"{smaller}, or take the longest rows out of the data set"
                ) from None
            advice = f"finetune.local_batch_size: {rows}"
            report("out_of_memory", reason=str(error), local_batch_size=plan.micro_batch, next=rows, recipe=advice)
        scratch, resumed = plan.scratch.with_name(f"try-{number + 1}"), plan.scratch.with_name(f"resumed-{number + 1}")
        # The last try may take up gigabytes, and the restored checkpoint as many.
        shutil.rmtree(plan.scratch)
        if plan.resume is not None:
            shutil.rmtree(plan.resume)
        resume = nodes.agree(partial(checkpoints.restore, store, run, resumed, report), checkpoints.describe)
        plan = replace(plan, scratch=scratch, micro_batch=rows, resume=resume)
    raise AssertionError


def _attempt(plan: Plan, report: Report, nodes: NodeGroup) -> Result:
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
        silence_libraries()
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
        with failure_file(plan, rank).open("xb") as stream:
            os.posix_fallocate(stream.fileno(), 0, FAILURE_BYTES)
    heartbeats = Heartbeats.create(heartbeat_file(plan), len(ranks))
    detector = hang.HangDetector(
        heartbeats,
        ranks,
        plan.spec.config.hang_seconds,
        plan.scratch,
        world_size=plan.spec.config.processes,
        linger=_LINGER_SECONDS if nodes.count > 1 else 0.0,
    )
    kills = memory.kernel_kills()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        with (
            _relay(events_file(plan), report),
            hang.detecting(detector),
            nodes.watching_peers(partial(hang.kill_ranks, heartbeats, len(ranks))) as peers,
        ):
            return elastic_launch(config, run_rank)(plan, os.getpid(), ranks.start)[ranks.start]
    except SignalException as error:
        raise _first_of(_failures(plan, ranks)) or StoppedError(f"stopped on request ({error.sigval.name})") from None
    except (DistError, RendezvousError) as error:
        raise TryAgainError(f"the ranks did not find each other ({error}): the next try begins again") from None
    except ChildFailedError as error:
        if (reason := detector.error or peers.error) is not None:
            raise reason from None
        rank, failure = error.get_first_failure()
        raise _verdict(plan, ranks, rank, failure.exitcode, kills) from None
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _failures(plan: Plan, ranks: range) -> dict[int, tuple[float, Exception]]:
    """Return when and with what each rank failed, by rank."""
    written = {rank: failure_file(plan, rank).read_bytes() for rank in ranks}
    return {rank: pickle.loads(found) for rank, found in written.items() if found.startswith(pickle.PROTO)}


def _first_of(failures: dict[int, tuple[float, Exception]]) -> Exception | None:
    """Return the first failure that explains the others: a rank whose peer is gone fails, too, in gloo or NCCL."""
    ordered = sorted(
        failures.values(), key=lambda failure: (not isinstance(failure[1], AnemoneError | OSError), failure[0])
    )
    return ordered[0][1] if ordered else None


def _verdict(plan: Plan, ranks: range, rank: int, exit_code: int, kills: int | None) -> Exception:
    reported = _failures(plan, ranks)
    # The agent stops the survivors of a rank that was killed. Nobody asked this job to stop, or it would not be here.
    failures = {other: found for other, found in reported.items() if not isinstance(found[1], StoppedError)}
    first = _first_of(failures)
    if isinstance(first, AnemoneError | OSError):
        return first
    silent = [other for other in ranks if other not in reported]
    if exit_code >= 0 and silent:
        if rank in silent:
            return RuntimeError(f"rank {rank} ended with exit code {exit_code} and without an error")
        rank, exit_code = silent[0], -signal.SIGKILL
    if exit_code == -signal.SIGKILL:
        return _killed(rank, kills)
    if exit_code < 0:
        name = signal.Signals(-exit_code).name
        return RankKilledError(f"rank {rank} was ended by signal {-exit_code} ({name})", 128 - exit_code)
    # All were stopped, and not by this process: another node was asked to stop.
    error = first or _first_of(reported)
    assert error is not None
    return error


def _killed(rank: int, kills: int | None) -> Exception:
    if kills is not None and memory.kernel_kills() == kills:
        return TryAgainError(
            f"rank {rank} was killed (SIGKILL), and not by the kernel for want of memory: the next try goes on from "
            "the last checkpoint"
        )
    return MemoryExhaustedError(f"rank {rank} was killed (SIGKILL), most likely for want of memory")


@contextmanager
def _relay(path: Path, report: Report) -> Iterator[None]:
    """Report the events that rank 0 appends to `path`, as they come. Errors of `report` are raised at the end."""
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
