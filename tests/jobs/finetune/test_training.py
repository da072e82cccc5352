"""Trainings of a tiny model through AutoModel's recipe: results, equalities, verdicts."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from include.artifacts.store import Store
from include.specs.base import Artifact

Config = dict[str, Any]


def test_lora_writes_an_adapter_that_peft_reads_and_that_lowers_the_loss(
    start: Callable, config: Config, base: Artifact, base_folder: Path
) -> None:
    job = start(config)
    assert job.wait() == 0, job.output
    curve, validation = job.curve(), job.curve("validation.jsonl")
    assert [point["step"] for point in curve] == list(range(1, 13))
    assert [point["step"] for point in validation] == [5, 10, 12]
    assert curve[-1]["loss"] < 0.8 * curve[0]["loss"]
    assert curve[0]["learning_rate"] == pytest.approx(0.001)
    assert max(point["learning_rate"] for point in curve) == pytest.approx(0.02)
    metrics = job.manifest.metrics
    assert metrics["best_validation_loss"] == min(point["loss"] for point in validation)
    assert metrics["tokens"] == sum(point["tokens"] for point in curve)
    assert metrics["parameters_trained"] == 17408
    assert metrics["resumed_from"] == 0

    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base_folder / "model")
    ids = torch.tensor([[1, 20, 30, 40]])
    plain = model(ids).logits
    tuned = PeftModel.from_pretrained(model, job.files / "adapter")(ids).logits
    assert not torch.allclose(plain, tuned)
    adapter = json.loads((job.files / "adapter" / "adapter_config.json").read_text())
    assert adapter["base_model_name_or_path"] == f"sha256:{base.digest}"


def test_two_processes_train_like_one(start: Callable, config: Config) -> None:
    one = start({**config, "method": "sft", "learning_rate": 0.01})
    assert one.wait() == 0, one.output
    one.set_aside()
    two = start({**config, "method": "sft", "learning_rate": 0.01, "local_batch_size": 4, "processes": 2})
    assert two.name == one.name
    assert two.wait() == 0, two.output
    assert [p["loss"] for p in two.curve()] == pytest.approx([p["loss"] for p in one.curve()], abs=1e-4)
    assert [p["tokens"] for p in two.curve()] == [p["tokens"] for p in one.curve()]
    assert two.manifest.metrics["processes"] == 2

    from transformers import AutoModelForCausalLM, AutoTokenizer

    names = {path.name for path in (one.files / "model").iterdir()}
    assert {"config.json", "model.safetensors.index.json", "tokenizer.json", "chat_template.jinja"} <= names
    first, second = (AutoModelForCausalLM.from_pretrained(job.files / "model") for job in (one, two))
    for (name, a), b in zip(first.state_dict().items(), second.state_dict().values(), strict=True):
        assert (a - b).abs().max() < 1e-3, name
    assert AutoTokenizer.from_pretrained(one.files / "model").eos_token == "<|end|>"


def test_a_rank_frees_its_reducer_with_its_process(
    start: Callable, config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Freed by Python, the last owner of gloo's group waits for gloo's threads, which may be waiting for the GIL."""
    from torch.nn.parallel import DistributedDataParallel

    freed = tmp_path / "freed"
    monkeypatch.setattr(DistributedDataParallel, "__del__", lambda _: freed.touch(), raising=False)
    assert start({**config, "local_batch_size": 4, "processes": 2}).wait() == 0
    assert not freed.exists()


def test_what_is_computed_again_instead_of_kept_is_the_same(start: Callable, config: Config) -> None:
    short = {**config, "method": "sft", "learning_rate": 0.01, "steps": 5}
    kept = start(short)
    assert kept.wait() == 0, kept.output
    kept.set_aside()
    again = start({**short, "activation_checkpointing": True})
    assert again.name == kept.name
    assert again.wait() == 0, again.output
    assert [p["loss"] for p in again.curve()] == pytest.approx([p["loss"] for p in kept.curve()], abs=1e-5)


@pytest.fixture(scope="session")
def qwen_folder(tmp_path_factory: pytest.TempPathFactory, base_folder: Path) -> Path:
    """A random Qwen2 below `model/`, for which AutoModel brings a model of its own."""
    import shutil

    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    folder = tmp_path_factory.mktemp("qwen")
    shutil.copytree(base_folder / "model", folder / "model", ignore=shutil.ignore_patterns("*.safetensors"))
    torch.manual_seed(0)
    Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=320,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=128,
            initializer_range=0.15,
            tie_word_embeddings=False,
        )
    ).save_pretrained(folder / "model")
    return folder


@pytest.mark.parametrize(
    "changes",
    [
        {"method": "lora", "dtype": "bfloat16"},
        {"method": "sft", "strategy": "fsdp2", "processes": 2, "local_batch_size": 2, "learning_rate": 0.01},
    ],
    ids=["lora", "sft"],
)
def test_a_qwen_comes_back_under_the_names_that_transformers_knows(
    start: Callable, config: Config, make_artifact: Callable, qwen_folder: Path, changes: Config
) -> None:
    more = {"activation_checkpointing": True, **changes}
    job = start({**config, "steps": 6, **more}, base=make_artifact("qwen", folder=qwen_folder))
    assert job.wait() == 0, job.output
    assert job.curve()[-1]["loss"] < job.curve()[0]["loss"]

    from transformers import AutoModelForCausalLM

    from jobs.merge.weights import attach_adapter

    if changes["method"] == "lora":
        # Refuses an adapter of which one name or shape is not the model's.
        attach_adapter(AutoModelForCausalLM.from_pretrained(qwen_folder / "model"), job.files / "adapter")
        return
    _, report = AutoModelForCausalLM.from_pretrained(job.files / "model", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_lora_in_two_processes(start: Callable, config: Config, strategy: str) -> None:
    job = start({**config, "local_batch_size": 4, "processes": 2, "strategy": strategy})
    assert job.wait() == 0, job.output
    assert job.curve()[-1]["loss"] < 0.8 * job.curve()[0]["loss"]
    assert (job.files / "adapter" / "adapter_model.safetensors").stat().st_size > 17408 * 4


@pytest.mark.remedy("lower finetune.learning_rate")
@pytest.mark.parametrize("processes", [1, 2])
def test_a_loss_that_is_no_number_is_a_divergence(start: Callable, config: Config, processes: int) -> None:
    settings = {**config, "local_batch_size": 4, "processes": processes, "validate_every": 12}
    job = start({**settings, "learning_rate": 1e30})
    assert job.wait() == 70
    assert job.error.startswith("error: training diverged: the ")
    assert "lower finetune.learning_rate" in job.error
    assert job.manifest is None
    lowered = start({**settings, "learning_rate": 0.02})
    assert lowered.wait() == 0, lowered.output


@pytest.mark.remedy("raise finetune.learning_rate, or finetune.steps")
@pytest.mark.parametrize(
    ("too_little", "raised"),
    [({"learning_rate": 1e-9}, {"learning_rate": 0.02}), ({"steps": 1}, {"steps": 12})],
    ids=["learning_rate", "steps"],
)
def test_a_loss_that_stays_at_guessing_is_a_divergence(
    start: Callable, config: Config, too_little: Config, raised: Config
) -> None:
    settings = {**config, "min_learning_rate": 0.0, "warmup_steps": 0}
    job = start({**settings, **too_little})
    assert job.wait() == 70, job.output
    assert f"guessing gives {math.log(320):.3f}" in job.error
    assert job.error.endswith("raise finetune.learning_rate, or finetune.steps")
    assert job.manifest is None
    more = start({**settings, **raised})
    assert more.wait() == 0, more.output


@pytest.mark.remedy("give it more rows, or lower finetune.processes to …")
def test_fewer_rows_than_ranks_are_trained_on_in_fewer(
    start: Callable, config: Config, make_artifact: Callable, data: Artifact
) -> None:
    rows = (Path(data.uri.removeprefix("file://")) / "attempts").rglob("train.jsonl")
    first, *_ = next(rows).read_text().splitlines(keepends=True)
    one = make_artifact("one-row", {"train.jsonl": first, "validation.jsonl": first * 2})
    pair = {**config, "processes": 2, "local_batch_size": 4}
    job = start(pair, data=one)
    assert job.wait() == 65, job.output
    remedy = re.search(r"train\.jsonl has 1 rows for 2 processes: .*lower finetune\.processes to (\d)$", job.error)
    fewer = start({**pair, "processes": int(remedy[1])}, data=one)
    assert fewer.wait() == 0, fewer.output


def test_the_same_spec_gives_the_same_bytes(start: Callable, config: Config, store: Store) -> None:
    first = start(config)
    assert first.wait() == 0, first.output
    digest = first.manifest.content_digest
    again = start({**config, "checkpoint_every": 5})
    assert again.name == first.name
    assert again.wait() == 0
    assert "reused" in again.output
    first.set_aside()
    other = start({**config, "checkpoint_every": 5})
    assert other.wait() == 0, other.output
    assert other.manifest.content_digest == digest
