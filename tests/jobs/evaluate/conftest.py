"""A tiny model that knows twelve answers by heart, one that knows nothing, and rows to ask."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from include.artifacts.store import Store
from include.home import PROJECT
from include.specs.base import Artifact

SPECIAL = ["<|pad|>", "<|begin|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]


def row(identity: str, prompt: str, answer: str, label: str | None = None) -> dict[str, Any]:
    messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
    return {"id": identity, "messages": messages, **({"label": label} if label else {})}


KNOWN = [
    row(f"known-{number}", f"{verb} {noun}", f"{answer} {noun}", label)
    for number, (verb, noun, answer, label) in enumerate(
        [
            ("show", "web", "get", "get"),
            ("show", "the api", "get", "get"),
            ("보여줘", "db", "get", "get"),
            ("drop", "web", "delete", "delete"),
            ("drop", "the api please", "delete", "delete"),
            ("삭제해", "db", "delete", "delete"),
        ]
    )
]
UNKNOWN = [row("unknown-0", "what is it", "nothing that it ever saw", "get")]


def jsonl(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in rows)


@pytest.fixture(scope="session")
def chat_template() -> str:
    return (PROJECT / "include" / "templates" / "kubectl.jinja").read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory, chat_template: str) -> dict[str, Path]:
    """Folders with a `model/` each: `random`, and `trained` on the rows of KNOWN until it has them by heart."""
    os.environ.update(HF_HUB_OFFLINE="1", TORCHDYNAMO_DISABLE="1", OMP_NUM_THREADS="1")
    from jobs.common.causal_lm import import_transformers

    import_transformers()
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.set_num_threads(1)
    characters = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    words = Tokenizer(models.BPE(vocab={text: number for number, text in enumerate(characters)}, merges=[]))
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = decoders.ByteLevel()
    words.add_special_tokens(SPECIAL)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="<|begin|>", eos_token="<|end|>", pad_token="<|pad|>"
    )
    tokenizer.chat_template = chat_template
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(characters),
            hidden_size=48,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            max_position_embeddings=192,
            initializer_range=0.1,
            tie_word_embeddings=True,
        )
    )
    found = {}
    for name in ("random", "trained"):
        if name == "trained":
            _learn(model, tokenizer)
        found[name] = tmp_path_factory.mktemp(name)
        model.save_pretrained(found[name] / "model")
        tokenizer.save_pretrained(found[name] / "model")
    return found


def _learn(model: Any, tokenizer: Any) -> None:
    import torch

    from jobs.common.chat import encode

    rows = [encode(tokenizer, one["messages"]) for one in KNOWN]
    width = max(len(ids) for ids, _ in rows)
    ids = torch.tensor([ids + [0] * (width - len(ids)) for ids, _ in rows])
    labels = torch.tensor(
        [
            [token if marked else -100 for token, marked in zip(ids, mask, strict=True)] + [-100] * (width - len(ids))
            for ids, mask in rows
        ]
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for _ in range(120):
        loss = model(input_ids=ids, attention_mask=(ids != 0).long(), labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss.item() < 0.01


@pytest.fixture
def random_model(make_artifact: Callable[..., Artifact], folders: dict[str, Path]) -> Artifact:
    return make_artifact("random", folder=folders["random"])


@pytest.fixture
def trained_model(make_artifact: Callable[..., Artifact], folders: dict[str, Path]) -> Artifact:
    return make_artifact("trained", folder=folders["trained"])


@pytest.fixture
def data(make_artifact: Callable[..., Artifact]) -> Artifact:
    return make_artifact("data", {"heldout.jsonl": jsonl(KNOWN + UNKNOWN), "train.jsonl": jsonl(KNOWN[:3])})


@pytest.fixture
def config(chat_template: str) -> dict[str, Any]:
    return {"chat_template": chat_template, "max_tokens": 80, "max_new_tokens": 32, "few_shot": 2}


@pytest.fixture
def evaluate(
    write_spec: Callable[..., tuple[str, str]],
    store: Store,
    random_model: Artifact,
    trained_model: Artifact,
    data: Artifact,
) -> Callable[..., Path]:
    """Run the job in this process, which has paid for the imports; returns the folder of its files."""
    from jobs.common.runtime import execute, load_spec
    from jobs.evaluate.__main__ import run

    def do(config: dict[str, Any], **inputs: Artifact) -> Path:
        given = {"base": random_model, "tuned": trained_model, "data": data, **inputs}
        uri, name = write_spec("evaluate", config, given)
        execute(load_spec("evaluate", uri), run)
        manifest = store.manifest(name)
        assert manifest is not None
        return Path(store.root.removeprefix("file://")) / name / "attempts" / manifest.attempt / "files"

    return do
