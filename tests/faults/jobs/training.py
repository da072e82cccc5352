"""What the pages on training need beside the job: a disk that fills up, a poisoned model, rows that take memory."""

from __future__ import annotations

import json
import os
import random
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from include.specs.base import Artifact
from tests.jobs.finetune.conftest import Forked
from tests.jobs.models import conversation, jsonl

SMALL = 48 << 20
"""Bytes of the small disk: room for the inputs and some checkpoints of the tiny model."""


@dataclass
class SmallDisk:
    """A tmpfs of its own."""

    folder: Path

    def fill(self, *, leave: int) -> None:
        """Leave `leave` bytes of free space; what is taken meanwhile may make it less."""
        disk = os.statvfs(self.folder)
        with (self.folder / "filler").open("wb") as stream:
            os.posix_fallocate(stream.fileno(), 0, max(disk.f_bavail * disk.f_frsize - leave, 1))

    def empty(self) -> None:
        (self.folder / "filler").unlink()


@pytest.fixture
def small_disk(place: str, tmp_path: Path) -> Iterator[SmallDisk]:
    """The test's store (place `store`) or its jobs' folder for temporary files (`tmp`) on a disk of its own."""
    folder = tmp_path / place
    folder.mkdir()
    options = ["-o", f"size={SMALL}", "tmpfs", str(folder)]
    if subprocess.run(["mount", "-t", "tmpfs", *options], capture_output=True).returncode:
        pytest.skip("a small disk needs the right to mount one (root)")
    yield SmallDisk(folder)
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def writing_a_checkpoint(job: Forked) -> bool:
    """Wait until files of a checkpoint lie there without their manifest; False where the job ended before."""
    root = Path(job.store.root.removeprefix("file://"))
    draw = random.Random()
    before = set(root.glob(f"{job.name}.step*/attempts/*/files"))
    while job.runs:
        if set(root.glob(f"{job.name}.step*/attempts/*/files")) - before:
            time.sleep(draw.uniform(0, 0.01))
            return True
        time.sleep(0.0005)
    return False


def rows_of(job: Forked) -> list[float]:
    """Every weight of every checkpoint of a job."""
    from safetensors.torch import load_file

    root = Path(job.store.root.removeprefix("file://"))
    files = root.glob(f"{job.name}.step*/attempts/*/files/**/*.safetensors")
    return [value for file in files for tensor in load_file(file).values() for value in tensor.flatten().tolist()]


@pytest.fixture
def poisoned(base_folder: Path, make_artifact: Callable[..., Artifact]) -> dict[str, Artifact]:
    """A base with an infinite embedding of one token, and rows of which one uses it."""
    from safetensors.torch import load_file, save
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base_folder / "model")
    (token,) = tokenizer("~", add_special_tokens=False)["input_ids"]
    weights = load_file(base_folder / "model" / "model.safetensors")
    # Tied to the output, it would poison every row.
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    weights["model.embed_tokens.weight"][token] = float("inf")
    shape = json.loads((base_folder / "model" / "config.json").read_text()) | {"tie_word_embeddings": False}
    files = {"model/config.json": json.dumps(shape), "model/model.safetensors": save(weights, {"format": "pt"})}
    rows = [conversation(f"row-{number}", f"get pod web-{number % 30}", "kubectl get pods") for number in range(60)]
    rows[17] = conversation("the-bad-one", "get pod ~", "kubectl get pods")
    data = {"train.jsonl": jsonl(rows), "validation.jsonl": jsonl(rows[20:30])}
    return {"base": make_artifact("poisoned", files, base_folder), "data": make_artifact("with-a-bad-row", data)}


@pytest.fixture
def odd(make_artifact: Callable[..., Artifact]) -> Artifact:
    """57 rows, an epoch of 8 steps of which the last has a single row; and 21 to validate."""
    draw = random.Random(7)
    rows = [
        conversation(f"row-{n}", f"get pod web-{draw.randrange(30)}", f"kubectl get web-{draw.randrange(30)}")
        for n in range(78)
    ]
    return make_artifact("odd", {"train.jsonl": jsonl(rows[:57]), "validation.jsonl": jsonl(rows[57:])})


@pytest.fixture
def larger_tokenizer(base_folder: Path, make_artifact: Callable[..., Artifact], tmp_path: Path) -> Artifact:
    """The base with one token more in its tokenizer than its model embeds (320)."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base_folder / "model")
    tokenizer.add_tokens([f"<|more{number}|>" for number in range(321 - len(tokenizer))])
    tokenizer.save_pretrained(tmp_path / "larger")
    files = {f"model/{path.name}": path.read_bytes() for path in (tmp_path / "larger").iterdir()}
    return make_artifact("larger", files, base_folder)


@pytest.fixture
def long_rows(base_folder: Path, make_artifact: Callable[..., Artifact]) -> dict[str, Artifact]:
    """64 rows of very different lengths, up to 900 tokens, and a base with positions for them."""
    shape = json.loads((base_folder / "model" / "config.json").read_text()) | {"max_position_embeddings": 1024}
    rows = [
        conversation(
            f"row-{n}", "get pod " + "x" * (800 if n % 2 else 20 * (n % 9)), f"kubectl get web-{n % 30} -n prod"
        )
        for n in range(64)
    ]
    data = {"train.jsonl": jsonl(rows), "validation.jsonl": jsonl(rows[:4])}
    return {
        "base": make_artifact("long-base", {"model/config.json": json.dumps(shape)}, base_folder),
        "data": make_artifact("long-rows", data),
    }


def data_bytes(pid: int) -> int:
    """Bytes of a process's private writable memory (what RLIMIT_DATA counts)."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmData")).split()[1]) * 1024
