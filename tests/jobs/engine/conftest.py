"""A tiny model that knows ten answers in English and Korean by heart, and its evaluation."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from include.artifacts.manifest import InputEntry, Provenance
from include.artifacts.store import Store
from include.home import PROJECT
from include.specs.base import Artifact

SPECIAL = ["<|pad|>", "<|begin|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
MAX_NEW_TOKENS = 24


def row(identity: str, prompt: str, answer: str) -> dict[str, Any]:
    return {
        "id": identity,
        "messages": [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}],
    }


KNOWN = [
    row(f"known-{number}", f"{verb} {noun}", f"{answer} {noun}")
    for number, (verb, noun, answer) in enumerate(
        (verb, noun, answer)
        for verb, answer in (("show", "get"), ("drop", "delete"))
        for noun in ("web", "the api", "db-7", "파드", "결제 서버")
    )
]
UNKNOWN = [row("unknown-0", "what is it", "nothing it ever saw")]
ROWS = [*KNOWN, *UNKNOWN]


def jsonl(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in rows)


@pytest.fixture(scope="session")
def chat_template() -> str:
    return (PROJECT / "include" / "templates" / "kubectl.jinja").read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def tokenizer(chat_template: str) -> Any:
    """One token a byte."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    characters = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    words = Tokenizer(models.BPE(vocab={text: number for number, text in enumerate(characters)}, merges=[]))
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = decoders.ByteLevel()
    words.add_special_tokens(SPECIAL)
    found = PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="<|begin|>", eos_token="<|end|>", pad_token="<|pad|>"
    )
    found.chat_template = chat_template
    return found


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    """A folder with `model/`: a Llama of two layers, trained on KNOWN until it has it by heart."""
    os.environ.update(HF_HUB_OFFLINE="1", TORCHDYNAMO_DISABLE="1", OMP_NUM_THREADS="1")
    from jobs.common.causal_lm import import_transformers

    import_transformers()
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            max_position_embeddings=128,
            initializer_range=0.1,
            tie_word_embeddings=True,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=0,
        )
    )
    _learn(model, tokenizer)
    folder = tmp_path_factory.mktemp("merged")
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    return folder


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
def merged(make_artifact: Callable[..., Artifact], model_folder: Path) -> Artifact:
    return make_artifact("merged", folder=model_folder)


@pytest.fixture
def data(make_artifact: Callable[..., Artifact]) -> Artifact:
    return make_artifact("data", {"heldout.jsonl": jsonl(ROWS)})


@pytest.fixture(scope="session")
def scores(model_folder: Path, tokenizer: Any) -> list[Any]:
    """The model's own answers to ROWS, as the job `evaluate` measures them."""
    from jobs.common.causal_lm import load_model
    from jobs.evaluate.measure import measure

    return measure(
        load_model(model_folder / "model"),
        tokenizer,
        ROWS,
        max_tokens=96,
        max_new_tokens=MAX_NEW_TOKENS,
        batch_size=4,
        on_batch=lambda done: None,
    )


@pytest.fixture
def evaluated(store: Store, provenance: Provenance, scores: list[Any]) -> Callable[..., Artifact]:
    """Commit an evaluation of `merged` on `data`; `scores` are the answers, the model's own by default."""
    from jobs.evaluate.results import write_results

    own = scores
    numbers = itertools.count()

    def make(merged: Artifact, data: Artifact, scores: list[Any] | None = None) -> Artifact:
        name = f"evaluate-{next(numbers)}"
        with store.attempt(name) as attempt:
            write_results(attempt.files, ROWS, {"tuned": scores or own}, 0)
            manifest, _ = attempt.commit(
                job="evaluate",
                code="0",
                provenance=provenance,
                config={"max_new_tokens": MAX_NEW_TOKENS},
                inputs={
                    "tuned": InputEntry(uri=merged.uri, digest=merged.digest),
                    "data": InputEntry(uri=data.uri, digest=data.digest),
                },
            )
        return Artifact(uri=store.uri(name), digest=manifest.content_digest)

    return make


@pytest.fixture
def config() -> dict[str, Any]:
    return {"max_tokens": 96, "max_new_tokens": 32, "batch_size": 4}


@pytest.fixture
def build(
    write_spec: Callable[..., tuple[str, str]], store: Store, merged: Artifact, data: Artifact, evaluated: Any
) -> Callable[..., Path]:
    """Run the job in this process, which has paid for the imports; returns the folder of its files."""
    from jobs.common.runtime import execute, load_spec
    from jobs.engine.__main__ import run

    def do(config: dict[str, Any], **inputs: Artifact) -> Path:
        given = {"merged": merged, "data": data, **inputs}
        if "evaluation" not in given:
            given["evaluation"] = evaluated(given["merged"], given["data"])
        uri, name = write_spec("engine", config, given)
        try:
            execute(load_spec("engine", uri), run)
        except Exception:
            assert store.manifest(name) is None
            raise
        manifest = store.manifest(name)
        assert manifest is not None
        return Path(store.root.removeprefix("file://")) / name / "attempts" / manifest.attempt / "files"

    return do
