from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from include.specs.finetune import Config
from jobs.finetune.memory import is_exhausted, kernel_kills, smaller_micro_batch
from tests.jobs.finetune.memory_limit import MemoryLimit
from tests.jobs.models import conversation, jsonl


@pytest.mark.parametrize(
    ("batch", "ranks", "sizes"),
    [(32, 1, [16, 8, 4, 2, 1]), (32, 2, [16, 8, 4, 2, 1]), (24, 1, [12, 6, 3, 1]), (6, 2, [3, 1])],
)
def test_a_smaller_micro_batch_gives_the_same_global_batch(batch: int, ranks: int, sizes: list[int]) -> None:
    config = Config(
        steps=1, learning_rate=0.1, max_tokens=8, chat_template="x", global_batch_size=batch, local_batch_size=1
    ).model_copy(update={"processes": ranks})
    found, size = [], sizes[0] * 2
    while (size := smaller_micro_batch(config, size)) is not None:
        found.append(size)
    assert found == sizes


def test_torchs_own_refusal_is_told_from_other_errors() -> None:
    with pytest.raises(RuntimeError) as refused:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert is_exhausted(refused.value)
    assert is_exhausted(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"))
    assert is_exhausted(SystemError("error return without exception set"))
    with pytest.raises(RuntimeError) as other:
        torch.empty(2) @ torch.empty(3)
    assert not is_exhausted(other.value)


@pytest.mark.remedy(", set finetune.local_batch_size: …")
def test_a_smaller_micro_batch_than_was_tried_at_last_is_named_and_fits(
    start: Callable, config: dict[str, Any], make_artifact: Callable, base_folder: Path, memory_limit: MemoryLimit
) -> None:
    rows = [conversation(f"row-{n}", "get pod " + "x" * 800, f"kubectl get web-{n}") for n in range(64)]
    shape = json.loads((base_folder / "model" / "config.json").read_text()) | {"max_position_embeddings": 1024}
    inputs = {
        "base": make_artifact("long-base", {"model/config.json": json.dumps(shape)}, base_folder),
        "data": make_artifact("long-rows", {"train.jsonl": jsonl(rows), "validation.jsonl": jsonl(rows[:4])}),
    }
    settings = {"steps": 3, "warmup_steps": 0, "learning_rate": 0.05, "global_batch_size": 32, "max_tokens": 1024}
    hungry = {**config, **settings, "local_batch_size": 32}
    one_step = start({**hungry, "steps": 1, "local_batch_size": 2}, **inputs)
    memory_limit.hold(one_step.pid)
    one_step.wait()
    memory_limit.set(memory_limit.peak + (12 << 20))
    job = start(hungry, **inputs)
    memory_limit.hold(job.pid)
    assert job.wait() == 137, job.output
    remedy = re.search(
        r"give the job more memory, set finetune\.local_batch_size: (\d+), or take the longest", job.error
    )
    again = start({**hungry, "local_batch_size": int(remedy[1])}, **inputs)
    memory_limit.hold(again.pid)
    assert again.wait() == 0, again.output


def test_what_the_kernel_kills_counts_in_its_own_cgroup_and_not_in_a_neighbours(memory_limit: MemoryLimit) -> None:
    memory_limit.set(32 << 20)
    before = kernel_kills()
    script = (
        "import os, sys; from jobs.finetune.memory import kernel_kills; sys.stdin.readline()\n"
        "before = kernel_kills()\n"
        "if os.fork() == 0: bytearray(64 << 20)\n"
        "else: os.wait(); print(kernel_kills() - before)"
    )
    neighbour = subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    memory_limit.hold(neighbour.pid)
    assert neighbour.communicate("go\n")[0].strip() == "1"
    assert kernel_kills() == before


def test_a_process_that_a_person_kills_is_not_one_of_the_kernels() -> None:
    before = kernel_kills()
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    process.kill()
    process.communicate()
    assert kernel_kills() == before
