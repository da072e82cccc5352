"""A tiny random base model, an adapter trained on nothing but not zero, and held-out rows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from include.artifacts.manifest import InputEntry
from include.specs.base import Artifact
from tests.jobs.models import byte_tokenizer, conversation, jsonl, save_model, tiny_llama


@pytest.fixture(scope="session")
def build_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Write a random Llama with a byte tokenizer into `model/` of a new folder; returns the folder."""

    def build(seed: int = 0, layers: int = 2, hidden_size: int = 32, vocabulary: int = 262) -> Path:
        model = tiny_llama(
            seed=seed,
            vocab_size=vocabulary,
            hidden_size=hidden_size,
            num_hidden_layers=layers,
            initializer_range=0.2,
        )
        return save_model(tmp_path_factory.mktemp("model"), model, byte_tokenizer())

    return build


@pytest.fixture(scope="session")
def build_adapter(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Path]:
    """Write a LoRA adapter for a base folder into `adapter/` of a new folder; returns the folder."""

    def build(base: Path, scale: float = 0.2) -> Path:
        import torch
        from peft import LoraConfig, get_peft_model
        from transformers import AutoModelForCausalLM

        torch.manual_seed(1)
        model = get_peft_model(
            AutoModelForCausalLM.from_pretrained(base / "model"),
            LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "up_proj"], task_type="CAUSAL_LM"),
        )
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=scale)
        folder = tmp_path_factory.mktemp("adapter")
        model.save_pretrained(folder / "adapter")
        return folder

    return build


@pytest.fixture(scope="session")
def base_folder(build_model: Callable[..., Path]) -> Path:
    return build_model()


@pytest.fixture(scope="session")
def adapter_folder(base_folder: Path, build_adapter: Callable[[Path], Path]) -> Path:
    return build_adapter(base_folder)


@pytest.fixture
def base(make_artifact: Callable[..., Artifact], base_folder: Path) -> Artifact:
    return make_artifact("base", folder=base_folder)


@pytest.fixture
def tuned(make_artifact: Callable[..., Artifact], adapter_folder: Path) -> Artifact:
    return make_artifact("tuned", folder=adapter_folder)


@pytest.fixture
def data(make_artifact: Callable[..., Artifact]) -> Artifact:
    rows = [conversation(f"{number:016x}", f"show pod {'x' * (number % 7)}", f"get {number}") for number in range(20)]
    return make_artifact("data", {"heldout.jsonl": jsonl(rows)})


@pytest.fixture
def config(chat_template: str) -> dict[str, Any]:
    return {"chat_template": chat_template, "max_tokens": 64, "parity": {"prompts": 20}}


@pytest.fixture
def tuned_on(make_artifact: Callable[..., Artifact], adapter_folder: Path) -> Callable[[Artifact], Artifact]:
    """An adapter artifact whose manifest names the base that it was tuned on."""

    def make(base: Artifact) -> Artifact:
        inputs = {"base": InputEntry(uri=base.uri, digest=base.digest)}
        return make_artifact(f"finetune-{base.digest[:8]}", folder=adapter_folder, job="finetune", inputs=inputs)

    return make


@pytest.fixture
def merge(run_here: Callable[..., Path]) -> Callable[..., Path]:
    """Run the job; returns the folder of its files."""
    return lambda config, **inputs: run_here("merge", config, inputs)
