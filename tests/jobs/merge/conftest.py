"""A tiny random base model, an adapter trained on nothing but not zero, and held-out rows."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from include.artifacts.manifest import InputEntry, Manifest
from include.artifacts.store import Store
from include.home import PROJECT
from include.specs.base import Artifact

SPECIAL = ["<|pad|>", "<|begin|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]


@pytest.fixture(scope="session")
def chat_template() -> str:
    return (PROJECT / "include" / "templates" / "kubectl.jinja").read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def build_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Write a random Llama with a byte tokenizer into `model/` of a new folder; returns the folder."""
    os.environ.update(HF_HUB_OFFLINE="1", TORCHDYNAMO_DISABLE="1", OMP_NUM_THREADS="1")
    from jobs.common.causal_lm import import_transformers

    import_transformers()
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.set_num_threads(1)
    characters = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())]

    def build(seed: int = 0, layers: int = 2, hidden_size: int = 32, vocabulary: int = 262) -> Path:
        tokenizer = Tokenizer(models.BPE(vocab={text: number for number, text in enumerate(characters)}, merges=[]))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.add_special_tokens(SPECIAL)
        torch.manual_seed(seed)
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=vocabulary,
                hidden_size=hidden_size,
                intermediate_size=64,
                num_hidden_layers=layers,
                num_attention_heads=2,
                num_key_value_heads=2,
                max_position_embeddings=128,
                initializer_range=0.2,
                tie_word_embeddings=True,
            )
        )
        folder = tmp_path_factory.mktemp("model")
        model.save_pretrained(folder / "model")
        PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, bos_token="<|begin|>", eos_token="<|end|>", pad_token="<|pad|>"
        ).save_pretrained(folder / "model")
        return folder

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
    rows = [
        {
            "id": f"{number:016x}",
            "messages": [
                {"role": "user", "content": f"show pod {'x' * (number % 7)}"},
                {"role": "assistant", "content": f"get {number}"},
            ],
        }
        for number in range(20)
    ]
    return make_artifact("data", {"heldout.jsonl": "".join(json.dumps(row) + "\n" for row in rows)})


@pytest.fixture
def config(chat_template: str) -> dict[str, Any]:
    return {"chat_template": chat_template, "max_tokens": 64, "parity": {"prompts": 20}}


@pytest.fixture
def tuned_on(store: Store, provenance: Any, adapter_folder: Path) -> Callable[[Artifact], Artifact]:
    """An adapter artifact whose manifest names the base that it was tuned on."""

    def make(base: Artifact) -> Artifact:
        name = f"finetune-{base.digest[:8]}"
        with store.attempt(name) as attempt:
            for path in (adapter_folder / "adapter").iterdir():
                target = attempt.files / "adapter" / path.name
                target.parent.mkdir(exist_ok=True)
                target.write_bytes(path.read_bytes())
            manifest: Manifest = attempt.commit(
                job="finetune",
                code="0",
                provenance=provenance,
                inputs={"base": InputEntry(uri=base.uri, digest=base.digest)},
            )[0]
        return Artifact(uri=store.uri(name), digest=manifest.content_digest)

    return make


@pytest.fixture
def merge(write_spec: Callable[..., tuple[str, str]], store: Store) -> Callable[..., Path]:
    """Run the job in this process, which has paid for the imports; returns the folder of its files."""
    from jobs.common.runtime import execute, load_spec
    from jobs.merge.__main__ import run

    def do(config: dict[str, Any], **inputs: Artifact) -> Path:
        uri, name = write_spec("merge", config, inputs)
        try:
            execute(load_spec("merge", uri), run)
        except Exception:
            assert store.manifest(name) is None
            raise
        manifest = store.manifest(name)
        assert manifest is not None
        return Path(store.root.removeprefix("file://")) / name / "attempts" / manifest.attempt / "files"

    return do
