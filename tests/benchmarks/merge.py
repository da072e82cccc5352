"""The merge job on 4 GB of weights against a copy of the same files, and its peak of memory.

    .anemone/venvs/jobs/bin/python tests/benchmarks/merge.py      # about five minutes; 12 GB of disk for a while

A Llama with random float32 weights in shards of 1 GB, and a LoRA adapter of rank 16 on all its linear layers. The job
is the real one, in a process of its own: it reads and verifies its inputs, merges, writes, proves parity on held-out
rows, and commits. The copy reads the same shards and writes them with fsync, as the job does. Both find their inputs in
the page cache: they were just written.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import frame

from include.artifacts.manifest import Provenance
from include.artifacts.store import Store
from include.home import PROJECT
from include.job_plan import JobPlan

SHAPE = {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 19, "num_attention_heads": 16}
SMALL = {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 6, "num_attention_heads": 8}
VOCABULARY = 32_000
SHARD = "1GB"
"""As the laptop's platform starts it."""

TURNS = 3
TEMPLATE = (PROJECT / "include" / "templates" / "kubectl.jinja").read_text(encoding="utf-8")


def measure(small: bool) -> list[frame.Row]:
    with tempfile.TemporaryDirectory(dir=frame.scratch()) as name:
        folder = Path(name)
        inputs = prepare(folder, SMALL if small else SHAPE)
        base = Path(inputs["base"].removeprefix("file://"))
        (files,) = (base / "attempts").glob("*/files/model")
        size = sum(path.stat().st_size for path in files.glob("*.safetensors"))
        walls, copies, peaks, writing = [], [], [], []
        for turn in range(1 if small else TURNS):
            copies.append(copy(files, folder / "copy"))
            cost, made = merge(folder, inputs, turn)
            walls.append(cost.wall)
            peaks.append(cost.rss / 1e9)
            writing.append(made)
    shown = f"{size / 1e9:.1f} GB of float32 weights, LoRA of rank 16 on every linear layer, {len(walls)} turns"
    proof = f"{shown}; the whole process: start, checksums of input and output, merge, fsync, parity of 4 held-out rows"
    speed = [[size / 1e6 / seconds for seconds in of] for of in (walls, copies, writing)]
    return [
        frame.against(
            "merge job / copy of its weights with fsync", speed[0], speed[1], unit="MB/s", more_is_better=True, aim=0.5,
            conditions=proof,
        ),
        frame.against(
            "its merging and writing alone / copy", speed[2], speed[1], unit="MB/s", more_is_better=True,
            conditions=shown,
        ),
        frame.figure("merge job: peak of memory", peaks, unit="GB", aim=("<=", 1.5), conditions=shown),
    ]  # fmt: skip


def prepare(folder: Path, shape: dict[str, int]) -> dict[str, str]:
    """Base, adapter and held-out rows as artifacts; URIs by the job's names."""
    command = [sys.executable, __file__, "--prepare", str(folder), json.dumps(shape)]
    frame.spend(command)
    store = Store(f"file://{folder}/store")
    return {name: store.uri(name) for name in ("base", "tuned", "data")}


def make(folder: Path, shape: dict[str, int]) -> None:
    """In a process of its own, which holds the whole model."""
    from jobs.common.causal_lm import import_transformers

    import_transformers()
    import torch
    from models import byte_tokenizer
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    store = Store(f"file://{folder}/store")
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY, num_key_value_heads=shape["num_attention_heads"], tie_word_embeddings=True, **shape
        )
    )
    with store.attempt("base") as attempt:
        model.save_pretrained(attempt.files / "model", max_shard_size=SHARD)
        byte_tokenizer().save_pretrained(attempt.files / "model")
        commit(attempt)
    tuned = get_peft_model(model, LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"))
    for name, parameter in tuned.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    with store.attempt("tuned") as attempt:
        tuned.save_pretrained(attempt.files / "adapter")
        commit(attempt)
    with store.attempt("data") as attempt:
        rows = (
            {
                "id": f"{number:016x}",
                "messages": [
                    {"role": "user", "content": f"show pod {number}"},
                    {"role": "assistant", "content": f"kubectl get pod {number}"},
                ],
            }
            for number in range(64)
        )
        (attempt.files / "heldout.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        commit(attempt)


def commit(attempt) -> None:
    now = datetime.now(UTC)
    attempt.commit(
        job="benchmark",
        code="0",
        provenance=Provenance(
            started=now, finished=now, wall_seconds=0, cpu_seconds=0, peak_rss_bytes=0, host="-", python="3"
        ),
    )


def merge(folder: Path, inputs: dict[str, str], turn: int) -> tuple[frame.Cost, float]:
    """The job; its cost, and the seconds of its merging and writing."""
    store = Store(f"file://{folder}/store")
    config = {"chat_template": TEMPLATE, "max_tokens": 128, "stream_above": 0}

    plan = JobPlan.prepare("merge", config=config, inputs=inputs, store=store, refresh=f"turn {turn}")
    cost = frame.spend([sys.executable, "-m", "jobs.merge", "--spec", plan.write_spec()])
    manifest = plan.conclude(0, None)
    attempt = folder / "store" / plan.name / "attempts" / manifest.attempt
    events = {
        event["event"]: datetime.fromisoformat(event["time"])
        for event in map(json.loads, reversed((attempt / "events.jsonl").read_text().splitlines()))
    }
    remove(attempt / "files" / "model")
    return cost, (events["saved"] - events["streaming"]).total_seconds()


def copy(source: Path, target: Path) -> float:
    """Copy the shards, with fsync; returns seconds."""
    target.mkdir()
    began = time.monotonic()
    for path in source.glob("*.safetensors"):
        with path.open("rb") as reading, (target / path.name).open("wb") as writing:
            while block := reading.read(64 * 1024 * 1024):
                writing.write(block)
            writing.flush()
            os.fsync(writing.fileno())
    seconds = time.monotonic() - began
    remove(target)
    return seconds


def remove(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--prepare"]:
        make(Path(sys.argv[2]), json.loads(sys.argv[3]))
    else:
        frame.main(__doc__, measure)
