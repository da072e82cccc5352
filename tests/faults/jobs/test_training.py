"""Trainings that are killed, stopped, starved, poisoned and moved: what stands afterwards, and what the user reads."""

from __future__ import annotations

import json
import math
import os
import random
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from include.artifacts.store import Store
from tests.faults.jobs.training import SmallDisk, rows_of, writing_a_checkpoint
from tests.faults.scenario import scenario
from tests.jobs.finetune.conftest import Forked

Config = dict[str, Any]

KILLS = 30


@pytest.fixture
def long(config: Config) -> Config:
    """80 steps of a few milliseconds, a checkpoint every 5, in epochs of 9 steps."""
    return {**config, "steps": 80, "checkpoint_every": 5, "validate_every": 20, "learning_rate": 0.01}


def undisturbed(start: Callable[..., Forked], config: Config) -> str:
    """Content digest of the training that nothing disturbs; the store is as before afterwards."""
    job = start(config)
    assert job.wait() == 0, job.output
    job.set_aside()
    return job.manifest.content_digest


@pytest.mark.parametrize("seed", [1, 2, 3])
@scenario(
    given="a fine-tune with a checkpoint every 5 steps, in one process or in two",
    when=f"it, or a rank of it, is SIGKILLed at {KILLS} random moments, 10 of them inside the write of a checkpoint",
    then="every next try goes on from a whole checkpoint, and the adapter has the bytes of the undisturbed run",
)
def test_killed(start: Callable[..., Forked], long: Config, store: Store, reads: Callable, seed: int) -> None:
    draw = random.Random(seed)
    config = {**long, "seed": seed} | ({"processes": 2, "local_batch_size": 4} if seed == 3 else {})
    wanted = undisturbed(start, config)
    kills = inside = 0
    while kills < KILLS:
        job = start(config)
        if inside < KILLS // 3:
            ended = not writing_a_checkpoint(job)
        else:
            ended = not job.reaches(draw.choice(["started", "rows part=train", "train step=", "checkpoint step="]))
            time.sleep(draw.uniform(0, 0.3))
            ended = ended or not job.runs
        if ended:
            assert job.wait() == 0, job.output
            assert job.manifest.content_digest == wanted, f"after {kills} kills"
            job.set_aside()
            continue
        victim = draw.choice([job.pid, *job.ranks])
        before = set(job.checkpoints)
        with suppress(ProcessLookupError):
            os.kill(victim, signal.SIGKILL)
            kills += 1
        code = job.wait()
        if code == 0 and victim != job.pid:  # killed when its work was done
            assert job.manifest.content_digest == wanted, f"after {kills} kills"
            job.set_aside()
            continue
        assert code == (-signal.SIGKILL if victim == job.pid else 75), job.output
        inside += inside < KILLS // 3
        assert before <= set(job.checkpoints)
        for step in job.checkpoints:
            with store.open_files(f"{job.name}.step{step:08d}"):
                pass
        if code == 75:
            reads(job.message)
    job = start(config)
    assert job.wait() == 0, job.output
    assert job.manifest.content_digest == wanted
    assert [point["step"] for point in job.curve()] == list(range(1, 81))


@pytest.mark.parametrize("place", ["store", "tmp"])
@scenario(
    given="a fine-tune whose store, or whose scratch folder, lies on a small disk",
    when="the disk fills up at a random write, with a random rest of space, six times",
    then="it ends with 75, no half checkpoint exists, and with space again it gives the bytes of the undisturbed run",
)
def test_full_disk(
    place: str, small_disk: SmallDisk, start: Callable[..., Forked], long: Config, store: Store, reads: Callable
) -> None:
    draw = random.Random(place)
    wanted = undisturbed(start, long)
    for _ in range(6):
        job = start(long)
        job.wait_for("rows part=validation")
        time.sleep(draw.uniform(0, 1))
        small_disk.fill(leave=draw.randrange(0, 400_000))
        code = job.wait()
        small_disk.empty()
        if code == 0:
            assert job.manifest.content_digest == wanted
            job.set_aside()
            continue
        assert code == 75, job.output
        assert "no space left" in job.error
        reads(job.message)
        assert job.manifest is None
        for step in job.checkpoints:
            with store.open_files(f"{job.name}.step{step:08d}"):
                pass
    job = start(long)
    assert job.wait() == 0, job.output
    assert job.manifest.content_digest == wanted


@pytest.mark.parametrize("processes", [1, 2])
@scenario(
    given="a base model in which one token's embedding is infinite, and one row that uses this token",
    when="the training comes to that row",
    then="it stops with 70 before its weights change, names the step and the row, and no checkpoint holds NaN",
)
def test_nan(
    start: Callable[..., Forked], config: Config, poisoned: dict[str, Any], reads: Callable, processes: int
) -> None:
    config |= {"processes": processes, "local_batch_size": 8 // processes, "checkpoint_every": 1}
    for _ in range(2):
        job = start(config, **poisoned)
        assert job.wait() == 70, job.output
        assert "because of row the-bad-one" in job.error
        step = job.checkpoints[-1] if job.checkpoints else 0
        assert f"the loss at step {step + 1} is nan" in job.error
        assert all(math.isfinite(value) for value in rows_of(job))
    reads(job.message)


@pytest.mark.parametrize(
    ("processes", "stopped"),
    [
        pytest.param(2, 1, id="one of two ranks"),
        pytest.param(2, 0, id="the first of two ranks"),
        pytest.param(1, 0, id="the only rank"),
    ],
)
@scenario(
    given="a fine-tune with hang_seconds at 8, in two ranks or in one",
    when="a rank stops for good (SIGSTOP)",
    then="within 40 s the job ends with 75, with the other ranks' stacks in its log; the next try goes on",
)
def test_hung(start: Callable[..., Forked], long: Config, reads: Callable, processes: int, stopped: int) -> None:
    config = {**long, "steps": 9000, "checkpoint_every": 10, "hang_seconds": 8}
    config |= {"processes": processes, "local_batch_size": 8 // processes}
    job = start(config)
    job.wait_for("checkpoint step=10 ")
    ranks = job.ranks
    os.kill(ranks[stopped], signal.SIGSTOP)
    begun = time.monotonic()
    assert job.wait() == 75, job.output
    assert time.monotonic() - begun < 40
    assert f"rank {stopped} of {processes} hangs" in job.error
    assert "it is stopped by a signal" in job.error
    assert "a stopped process cannot show its stack" in job.output
    shown = job.output.split("rank 0 (pid ")[1].split("rank 1 (pid ")
    standing = ["in run_train_validation_loop" in stack for stack in shown]
    assert standing == [rank != stopped for rank in range(processes)], "the stacks of the ranks that wait"
    assert not any(Path(f"/proc/{rank}").exists() for rank in ranks)
    reads(job.message)
    job = start(config)
    job.wait_for("resumed step=")
    job.wait_for("train step=")


@pytest.mark.parametrize(("first", "then"), [(2, 1), (1, 2)])
@scenario(
    given="a checkpoint of a fine-tune in two processes, or in one, of rows that do not divide by two",
    when="the next try runs in one process, or in two",
    then="it goes on with the same rows in the same order, and every loss is that of the undisturbed run to 4 decimals",
)
def test_another_world_size(start: Callable[..., Forked], long: Config, odd: Any, first: int, then: int) -> None:
    config = {**long, "steps": 40, "checkpoint_every": 10}

    def of(processes: int) -> Config:
        return {**config, "processes": processes, "local_batch_size": 8 // processes}

    whole = start(of(then), data=odd)
    assert whole.wait() == 0, whole.output
    whole.set_aside()
    job = start(of(first), data=odd)
    job.wait_for("checkpoint step=10 ")
    os.kill(job.pid, signal.SIGKILL)
    job.wait()
    moved = start(of(then), data=odd)
    assert moved.name == whole.name
    assert moved.wait() == 0, moved.output
    assert moved.manifest.metrics["resumed_from"] >= 10
    assert moved.manifest.metrics["processes"] == then
    assert [p["tokens"] for p in moved.curve()] == [p["tokens"] for p in whole.curve()]
    assert [p["loss"] for p in moved.curve()] == pytest.approx([p["loss"] for p in whole.curve()], abs=1e-4)


@scenario(
    given="a base model whose tokenizer has more tokens than the model embeds",
    when="it is to be fine-tuned",
    then="it is refused with 65 before the first step",
)
def test_vocabulary(start: Callable[..., Forked], config: Config, larger_tokenizer: Any, reads: Callable) -> None:
    job = start(config, base=larger_tokenizer)
    assert job.wait() == 65, job.output
    assert "the base model's tokenizer has 321 tokens, the model embeds 320" in job.error
    assert "train step=" not in job.output
    reads(job.message)


@scenario(
    given="a fine-tune that was killed after its fourth checkpoint",
    when="the newest checkpoint's manifest is cut off, and a file of the one before it is",
    then="both are refused by name, and it goes on from the one before, to the bytes of the undisturbed run",
)
def test_damaged_checkpoints(start: Callable[..., Forked], long: Config, store: Store, reads: Callable) -> None:
    wanted = undisturbed(start, long)
    job = start(long)
    job.wait_for("checkpoint step=20 ")
    os.kill(job.pid, signal.SIGKILL)
    job.wait()
    root = Path(store.root.removeprefix("file://"))
    *_, sound, damaged, cut = store.names(f"{job.name}.step")
    manifest = root / cut / "manifest.json"
    manifest.write_bytes(manifest.read_bytes()[:100])
    weights = next((root / damaged).rglob("automodel/model/adapter_model.safetensors"))
    os.truncate(weights, weights.stat().st_size - 1)
    job = start(long)
    assert job.wait() == 0, job.output
    skipped = [line for line in job.output.splitlines() if line.startswith("checkpoint_skipped")]
    assert [f"checkpoint={name}" in line for name, line in zip([cut, damaged], skipped, strict=True)] == [True, True]
    assert f"resumed step={int(sound[-8:])}" in job.output
    assert job.manifest.content_digest == wanted
    events = (job.files.parent / "events.jsonl").read_text().splitlines()
    reasons = [event["reason"] for event in map(json.loads, events) if event["event"] == "checkpoint_skipped"]
    for reason in reasons:
        reads(reason.replace(store.root, "…"))
