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
    until = time.monotonic() + 30
    while any(Path(f"/proc/{rank}").exists() for rank in ranks):
        assert time.monotonic() < until, "ranks outlive their parent"
        time.sleep(0.05)
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


def test_a_killed_rank_ends_the_job_to_be_tried_again(start: Callable, long: Config) -> None:
    job = start({**long, "steps": 2000, "processes": 2, "local_batch_size": 4})
    job.wait_for("train step=10 ")
    ranks = job.ranks
    os.kill(ranks[1], signal.SIGKILL)
    assert job.wait() == 75, job.output
    assert "rank 1 was killed (SIGKILL), and not by the kernel for want of memory" in job.error
    assert not any(Path(f"/proc/{rank}").exists() for rank in ranks)


@pytest.mark.parametrize("processes", [1, 2])
def test_sigterm_saves_and_the_next_try_goes_on(start: Callable, long: Config, store: Store, processes: int) -> None:
    config = {**long, "steps": 4000, "checkpoint_every": 4000, "validate_every": 4000, "processes": processes}
    config["local_batch_size"] = 8 // processes
    job = start(config)
    job.wait_for("train step=10 ")
    os.kill(job.pid, signal.SIGTERM)
    assert job.wait() == 143, job.output
    assert "goes on from there" in job.error
    (checkpoint,) = store.names(f"{job.name}.step")
    step = int(checkpoint.rpartition("step")[2])
    assert 10 <= step < 4000
    job = start(config)
    job.wait_for(f"resumed step={step}")
    job.wait_for("train step=")
    os.kill(job.pid, signal.SIGTERM)
    assert job.wait() == 143, job.output
    assert len(store.names(f"{job.name}.step")) == 2
