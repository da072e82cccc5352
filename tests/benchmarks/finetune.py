"""The fine-tune job against TRL's SFTTrainer: tokens a CPU second and a second of wall in steady state, start-up, loss.

    .anemone/venvs/bench/bin/python tests/benchmarks/finetune.py      # about ten minutes

The same random Llama of the demo's shape (0.8M parameters), the same tokens and loss mask, LoRA of rank 16 on every
linear layer of the blocks, AdamW, cosine with warm-up, batches of 32 rows, float32, one thread. Each side runs as a
process twice, with fewer and with more steps: the difference is the steady state, the rest of the shorter run is the
start. The job's start includes what TRL's script does not do: checksums, a validation at the end, the artifact.
"""

from __future__ import annotations

import json
import random
import statistics
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import frame

from include.artifacts.store import Store
from include.job_plan import JobPlan

STEPS, TURNS = (30, 120), 3
SMALL_STEPS, SMALL_TURNS = (20, 40), 1
ROWS = 2048
THREADS = {"OMP_NUM_THREADS": "1"}
OPTIONS = {"learning_rate": 0.003, "warmup_steps": 2, "weight_decay": 0.0, "betas": [0.9, 0.95], "seed": 0}
LORA = {"dim": 16, "alpha": 32}


@dataclass(frozen=True)
class Run:
    """A whole training: CPU and wall seconds, tokens (padding excluded), mean loss of the last tenth of its steps."""

    cpu: float
    wall: float
    tokens: int
    loss: float


def measure(small: bool) -> list[frame.Row]:
    steps, turns = (SMALL_STEPS, SMALL_TURNS) if small else (STEPS, TURNS)
    sides = {"ours": the_job, "theirs": trl}
    found: dict[str, list[list[Run]]] = {name: [] for name in sides}
    with tempfile.TemporaryDirectory(dir=frame.scratch()) as scratch:
        folder = Path(scratch)
        frame.spend([sys.executable, __file__, "--prepare", str(folder)])
        for turn in range(turns):
            for name, side in sides.items():
                found[name].append([side(folder, count, turn) for count in steps])
    shown = f"Llama of 0.8M, {steps[0]} and {steps[1]} steps of 32 rows, {turns} turns, one thread; " + frame.versions(
        "nemo-automodel", "trl", "peft", "transformers", "torch"
    )
    losses = " / ".join(f"{statistics.median(runs[1].loss for runs in found[name]):.4f}" for name in sides)
    rows = [
        frame.against(
            f"fine-tune job / TRL SFTTrainer: tokens {unit}, steady state", speed(found["ours"], kind),
            speed(found["theirs"], kind), unit=unit, more_is_better=True, aim=1.0,
            conditions=f"{shown}; loss at the end {losses}",
        )
        for kind, unit in (("cpu", "a CPU s"), ("wall", "a s"))
    ]  # fmt: skip
    rows.append(
        frame.against(
            "fine-tune job / TRL SFTTrainer: start and end", start(found["ours"]), start(found["theirs"]),
            unit="CPU s", conditions=f"{shown}; ours with checksums, encoding, a validation and the artifact",
        )
    )  # fmt: skip
    return rows


def speed(turns: list[list[Run]], kind: str) -> list[float]:
    return [(more.tokens - fewer.tokens) / (getattr(more, kind) - getattr(fewer, kind)) for fewer, more in turns]


def start(turns: list[list[Run]]) -> list[float]:
    """CPU seconds of the shorter run less those of its steps."""
    return [fewer.cpu - fewer.tokens * (more.cpu - fewer.cpu) / (more.tokens - fewer.tokens) for fewer, more in turns]


def prepare(folder: Path) -> None:
    """Model and rows as artifacts, and the rows as tokens for TRL."""
    from merge import TEMPLATE, commit
    from models import SHAPES, byte_tokenizer, write_llama

    from jobs.common.chat import encode, load_tokenizer

    store = Store(f"file://{folder}/store")
    with store.attempt("base") as attempt:
        write_llama(SHAPES["0.8M"], attempt.files / "model", pad=0, begin=1, end=2, mute=())
        byte_tokenizer().save_pretrained(attempt.files / "model")
        commit(attempt)
    draw = random.Random(0)
    with store.attempt("data") as attempt:
        for part, count in (("train", ROWS), ("validation", 32), ("heldout", 32)):
            (attempt.files / f"{part}.jsonl").write_text(
                "".join(json.dumps(conversation(draw, number)) + "\n" for number in range(count))
            )
        commit(attempt)
    (model,) = (folder / "store" / "base" / "attempts").glob("*/files/model")
    (data,) = (folder / "store" / "data" / "attempts").glob("*/files/train.jsonl")
    tokenizer = load_tokenizer(model, TEMPLATE)
    with (folder / "tokens.jsonl").open("w") as stream:
        for line in data.open(encoding="utf-8"):
            ids, mask = encode(tokenizer, json.loads(line)["messages"])
            labels = [token if trained else -100 for token, trained in zip(ids, mask, strict=True)]
            stream.write(json.dumps({"input_ids": ids, "labels": labels}) + "\n")
    (folder / "model").write_text(str(model))


def conversation(draw: random.Random, number: int) -> dict[str, Any]:
    verb, name = draw.choice(("get", "describe", "delete", "restart")), f"web-{draw.randrange(1000)}"
    return {
        "id": f"{number:016x}",
        "messages": [
            {"role": "user", "content": f"please {verb} the pod called {name} for me {'now ' * draw.randint(0, 4)}"},
            {"role": "assistant", "content": f"kubectl {verb} pod {name} -n prod"},
        ],
    }


def the_job(folder: Path, steps: int, turn: int) -> Run:
    from merge import TEMPLATE

    store = Store(f"file://{folder}/store")
    config = {
        **OPTIONS,
        "lora": LORA,
        "steps": steps,
        "max_tokens": 256,
        "chat_template": TEMPLATE,
        "validate_every": steps,
        "checkpoint_every": 10 * steps,
    }
    inputs = {name: store.uri(name) for name in ("base", "data")}
    plan = JobPlan.prepare("finetune", config=config, inputs=inputs, store=store, refresh=f"turn {turn}")
    cost = frame.spend([sys.executable, "-m", "jobs.finetune", "--spec", plan.write_spec()], THREADS)
    manifest = plan.conclude(0, None)
    files = folder / "store" / plan.name / "attempts" / manifest.attempt / "files"
    curve = [json.loads(line) for line in (files / "loss.jsonl").open(encoding="utf-8")]
    last = curve[-max(1, steps // 10) :]
    return Run(cost.cpu, cost.wall, sum(int(point["tokens"]) for point in curve), mean(last))


def trl(folder: Path, steps: int, _turn: int) -> Run:
    out = folder / "trl.json"
    cost = frame.spend([sys.executable, __file__, "--trl", str(folder), str(steps), str(out)], THREADS)
    found = json.loads(out.read_text())
    return Run(cost.cpu, cost.wall, found["tokens"], found["loss"])


def mean(points: list[dict[str, float]]) -> float:
    return statistics.mean(point["loss"] for point in points)


def train_with_trl(folder: Path, steps: int, out: Path) -> None:
    """What one writes with TRL in an afternoon."""
    from datasets import load_dataset
    from merge import TEMPLATE
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM
    from trl import SFTConfig, SFTTrainer

    from jobs.common.chat import load_tokenizer

    model = Path((folder / "model").read_text())
    rows = load_dataset("json", data_files=str(folder / "tokens.jsonl"), split="train", cache_dir=str(folder / "cache"))
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(model),
        args=SFTConfig(
            output_dir=str(folder / "trl"),
            max_steps=steps,
            per_device_train_batch_size=32,
            learning_rate=OPTIONS["learning_rate"],
            lr_scheduler_type="cosine",
            warmup_steps=OPTIONS["warmup_steps"],
            weight_decay=OPTIONS["weight_decay"],
            adam_beta1=OPTIONS["betas"][0],
            adam_beta2=OPTIONS["betas"][1],
            seed=OPTIONS["seed"],
            logging_steps=1,
            disable_tqdm=True,
            report_to="none",
            save_strategy="no",
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            dataloader_pin_memory=False,
            max_length=None,
            dataset_kwargs={"skip_prepare_dataset": True},
        ),
        train_dataset=rows,
        processing_class=load_tokenizer(model, TEMPLATE),
        peft_config=LoraConfig(
            r=LORA["dim"], lora_alpha=LORA["alpha"], target_modules=r".*_proj", task_type="CAUSAL_LM"
        ),
    )
    trainer.train()
    trainer.save_model(str(folder / "trl" / "adapter"))
    points = [point for point in trainer.state.log_history if "loss" in point]
    lengths = [len(row) for row in rows["input_ids"]]
    # Rows are drawn without repetition within an epoch, so whole batches hold the mean length closely.
    tokens = round(32 * steps * statistics.mean(lengths))
    out.write_text(json.dumps({"loss": mean(points[-max(1, steps // 10) :]), "tokens": tokens}))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--prepare"]:
        prepare(Path(sys.argv[2]))
    elif sys.argv[1:2] == ["--trl"]:
        train_with_trl(Path(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
    else:
        frame.main(__doc__, measure)
