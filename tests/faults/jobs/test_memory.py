"""Trainings that need more memory than there is: smaller micro-batches, the same global batch, the same losses."""

from __future__ import annotations

import re
import resource
from collections.abc import Callable
from typing import Any

import pytest

from include.specs.base import Artifact
from tests.faults.jobs.training import data_bytes
from tests.faults.scenario import scenario
from tests.jobs.finetune.conftest import Forked
from tests.jobs.finetune.memory_limit import MemoryLimit

Config = dict[str, Any]
MiB = 1 << 20


@pytest.fixture
def hungry(config: Config) -> Config:
    """8 steps over 32 long rows at a time, of which a micro-batch of 32 takes some 500 MiB."""
    return {
        **config,
        "steps": 8,
        "global_batch_size": 32,
        "local_batch_size": 32,
        "max_tokens": 1024,
        "checkpoint_every": 2,
        "validate_every": 8,
    }


def tried(job: Forked) -> list[int]:
    """The micro-batches that a job went on with."""
    return [int(rows) for rows in re.findall(r"^out_of_memory .* next=(\d+)", job.output, re.MULTILINE)]


@scenario(
    given="a fine-tune in a container whose memory is enough for 8 rows at a time, and 32 rows as its micro-batch",
    when="the kernel kills it for want of memory",
    then="it goes on with 16 rows at a time, then 8; the global batch stays 32, and the losses are equal to 5 decimals",
)
def test_killed_by_the_kernel(
    start: Callable[..., Forked], hungry: Config, long_rows: dict[str, Artifact], memory_limit: MemoryLimit, reads: Any
) -> None:
    small = start({**hungry, "local_batch_size": 8}, **long_rows)
    memory_limit.hold(small.pid)
    assert small.wait() == 0, small.output
    enough = memory_limit.peak
    small.set_aside()
    memory_limit.set(enough + 40 * MiB)
    job = start(hungry, **long_rows)
    memory_limit.hold(job.pid)
    assert job.wait() == 0, job.output
    assert tried(job) == [16, 8], job.output
    assert job.manifest.metrics["local_batch_size"] == 8
    line = next(line for line in job.output.splitlines() if line.startswith("out_of_memory"))
    assert 'recipe="finetune.local_batch_size: 16"' in line
    reads(line)
    job.set_aside()
    whole = start(hungry, **long_rows)
    assert whole.wait() == 0, whole.output
    assert tried(whole) == []
    for other in (job, small):
        assert [p["loss"] for p in other.curve()] == pytest.approx([p["loss"] for p in whole.curve()], abs=1e-5)
        assert [p["tokens"] for p in other.curve()] == [p["tokens"] for p in whole.curve()]


@scenario(
    given="a fine-tune after its first checkpoints",
    when="torch's allocator is refused memory",
    then="it goes on from the last checkpoint with half the micro-batch, to the losses of the undisturbed run",
)
def test_refused_by_the_allocator(
    start: Callable[..., Forked], hungry: Config, long_rows: dict[str, Artifact], reads: Any
) -> None:
    whole = start(hungry, **long_rows)
    assert whole.wait() == 0, whole.output
    whole.set_aside()
    job = start(hungry, **long_rows)
    job.wait_for("checkpoint step=2 ")
    (rank,) = job.ranks
    resource.prlimit(rank, resource.RLIMIT_DATA, (data_bytes(job.pid) + 150 * MiB, resource.RLIM_INFINITY))
    assert job.wait() == 0, job.output
    assert tried(job) == [16], job.output
    assert job.manifest.metrics["local_batch_size"] == 16
    assert [p["loss"] for p in job.curve()] == pytest.approx([p["loss"] for p in whole.curve()], abs=1e-5)
    reads(next(line for line in job.output.splitlines() if line.startswith("out_of_memory")))


@scenario(
    given="a fine-tune with less memory than a single row needs",
    when="the kernel has killed it four times, with 32, 16, 8 and 4 rows at a time",
    then="it gives up with 137 and says what to change",
)
def test_never_enough(
    start: Callable[..., Forked], hungry: Config, long_rows: dict[str, Artifact], memory_limit: MemoryLimit, reads: Any
) -> None:
    job = start(hungry, **long_rows)
    memory_limit.hold(job.pid)
    job.wait_for("initializing torch")
    memory_limit.set(memory_limit.used + 8 * MiB)
    assert job.wait() == 137, job.output
    assert tried(job) == [16, 8, 4]
    assert "give the job more memory, set finetune.local_batch_size: 2, or take the longest rows out" in job.error
    assert job.manifest is None
    reads(job.message)
