"""Checkpoints whose commit takes longer than a rank may be silent."""

from __future__ import annotations

import multiprocessing
import os
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed

from include.artifacts import files
from jobs.finetune import committing
from jobs.finetune.heartbeat import Heartbeats, HeartbeatSender
from tests.faults.scenario import scenario

Config = dict[str, Any]
HANG_SECONDS = 8


@pytest.fixture
def flushing(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object]], None]:
    """Have a rank call something before the store flushes a file; the job's own process flushes as ever."""
    flush = files.fsync

    def use(before: Callable[[], object]) -> None:
        def fsync(path: Path) -> None:
            if "RANK" in os.environ:
                before()
            flush(path)

        monkeypatch.setattr(files, "fsync", fsync)

    return use


def training(config: Config, processes: int) -> Config:
    shares = {"processes": processes, "local_batch_size": 8 // processes}
    return {**config, **shares, "steps": 6, "checkpoint_every": 4, "hang_seconds": HANG_SECONDS}


PIECES = 4


def _commit(on_progress: Callable[[], None]) -> bool:
    for _ in range(PIECES):
        time.sleep(2 * committing._TELL_SECONDS)
        on_progress()
    return True


def _take_part(rank: int, folder: Path) -> None:
    place = f"file://{folder}/rendezvous"
    distributed.init_process_group("gloo", init_method=place, rank=rank, world_size=2)
    heartbeat = HeartbeatSender(Heartbeats(folder / "heartbeats"), rank)
    (folder / str(rank)).write_text(str(committing.commit_on_rank_0(_commit, heartbeat, torch.device("cpu"))))


def test_ranks_that_wait_for_a_commit_send_heartbeats_while_they_hear_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(committing, "_TELL_SECONDS", 0.05)
    heartbeats = Heartbeats.create(tmp_path / "heartbeats", 2)
    ranks = [multiprocessing.get_context("fork").Process(target=_take_part, args=(rank, tmp_path)) for rank in (0, 1)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join()
    assert [(tmp_path / str(rank)).read_text() for rank in (0, 1)] == ["True", "None"]
    assert heartbeats.read(0).beats == PIECES
    assert heartbeats.read(1).beats >= PIECES


@pytest.mark.parametrize("processes", [1, 2])
@scenario(
    given="a fine-tune in one rank or two, and a store that takes longer than `hang_seconds` to commit a checkpoint",
    when="a checkpoint is committed",
    then="the training goes on, since every file that is stored is a sign of life",
)
def test_a_slow_commit_is_no_hang(start: Callable, config: Config, flushing: Callable, processes: int) -> None:
    flushed = []

    def slowly() -> None:
        time.sleep(HANG_SECONDS / 8)
        flushed.append(time.monotonic())
        if len(flushed) > 1:
            print(f"flushing for {flushed[-1] - flushed[0]:.0f} s", flush=True)

    flushing(slowly)
    job = start(training(config, processes))
    assert job.wait() == 0, job.output
    assert max(map(int, re.findall(r"flushing for (\d+) s", job.output))) > HANG_SECONDS
    assert "checkpoint step=4 committed=True" in job.output


@scenario(
    given="a fine-tune in two ranks, and a store that answers no more",
    when="a checkpoint is committed",
    then="the job ends with 75, names the rank that commits, and shows in its log where it stands",
)
def test_a_commit_that_hangs_is_found(start: Callable, config: Config, flushing: Callable, reads: Callable) -> None:
    flushing(lambda: threading.Event().wait())
    job = start(training(config, 2))
    assert job.wait() == 75, job.output
    assert job.error.startswith("error: rank 0 of 2 hangs: nothing was heard of it for ")
    assert "in publish" in job.output
    assert job.checkpoints == []
    reads(job.message)
