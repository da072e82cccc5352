"""Trainings that are killed, stopped and resumed."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from include.artifacts.store import Store
from tests.faults.scenario import scenario
from tests.waiting import wait_for

Config = dict[str, Any]


@pytest.fixture
def long(config: Config) -> Config:
    """60 steps with a checkpoint every 7; epochs of 8 or 9 steps, so that checkpoints lie within and between them."""
    return {**config, "steps": 60, "checkpoint_every": 7, "validate_every": 10, "learning_rate": 0.01}


def test_two_processes_killed_and_resumed_give_the_same_bytes(start: Callable, long: Config, store: Store) -> None:
    pair = {**long, "steps": 24, "processes": 2, "local_batch_size": 4}
    job = start(pair)
    assert job.wait() == 0, job.output
    digest = job.manifest.content_digest
    job.set_aside()
    job = start(pair)
    job.wait_for("checkpoint step=14")
    ranks = job.ranks
    assert len(ranks) == 2
    os.kill(job.pid, signal.SIGKILL)
    job.wait()
    wait_for(lambda: not any(Path(f"/proc/{rank}").exists() for rank in ranks), 30, "the ranks to end, too")
    job = start(pair)
    assert job.wait() == 0, job.output
    assert job.manifest.metrics["resumed_from"] >= 14
    assert job.manifest.content_digest == digest


def test_a_try_that_computes_activations_again_goes_on_where_one_that_kept_them_ended(
    start: Callable, long: Config
) -> None:
    short = {**long, "steps": 24}
    job = start(short)
    job.wait_for("checkpoint step=14")
    os.kill(job.pid, signal.SIGKILL)
    job.wait()
    job = start({**short, "activation_checkpointing": True})
    assert job.wait() == 0, job.output
    assert job.manifest.metrics["resumed_from"] >= 14
    losses = [point["loss"] for point in job.curve()]
    assert max(losses[14:]) < losses[0]


@scenario(
    given="a fine-tune in two ranks",
    when="one rank dies (SIGKILL)",
    then="within 20 s the job ends with 75, with the other rank's stack in its log; the next try goes on",
)
def test_a_dead_rank(start: Callable, long: Config, reads: Callable) -> None:
    config = {**long, "steps": 9000, "checkpoint_every": 10, "processes": 2, "local_batch_size": 4}
    job = start(config)
    job.wait_for("checkpoint step=10 ")
    ranks = job.ranks
    os.kill(ranks[1], signal.SIGKILL)
    begun = time.monotonic()
    assert job.wait() == 75, job.output
    assert time.monotonic() - begun < 20
    assert "rank 1 was killed (SIGKILL), and not by the kernel for want of memory" in job.error
    assert "_run_train_optim_step" in job.output, "where the other rank stood"
    assert not any(Path(f"/proc/{rank}").exists() for rank in ranks)
    reads(job.message)
    job = start(config)
    job.wait_for("resumed step=")


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize(
    "batch",
    [
        pytest.param(8, id="epochs of many steps"),
        pytest.param(70, id="epochs of a single step"),
    ],
)
@scenario(
    given="a fine-tune far from its next checkpoint, with epochs of many steps or of one",
    when="it is told to stop (SIGTERM)",
    then="it saves after the step at hand and ends with 143, and the next try goes on from there",
)
def test_stopped(start: Callable, long: Config, reads: Callable, processes: int, batch: int) -> None:
    config = {**long, "steps": 9000, "checkpoint_every": 9000, "validate_every": 9000, "processes": processes}
    config |= {"global_batch_size": batch, "local_batch_size": batch // processes}
    for _ in range(2):
        job = start(config)
        before = job.checkpoints
        job.wait_for("train step=")
        os.kill(job.pid, signal.SIGTERM)
        assert job.wait() == 143, job.output
        assert len(job.checkpoints) == len(before) + 1, job.output
        assert f"after step {job.checkpoints[-1]}, of which {job.checkpoints[-1]} are saved" in job.error
        assert "goes on from there" in job.error
        assert not before or f"resumed step={before[-1]}" in job.output
        reads(job.message)
