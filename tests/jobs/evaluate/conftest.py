"""A tiny model that knows twelve answers by heart, one that knows nothing, and rows to ask."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from include.specs.base import Artifact
from tests.jobs.models import byte_tokenizer, conversation, jsonl, learn_by_heart, save_model, tiny_llama

KNOWN = [
    conversation(f"known-{number}", f"{verb} {noun}", f"{answer} {noun}", label)
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
UNKNOWN = [conversation("unknown-0", "what is it", "nothing that it ever saw", "get")]


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory, chat_template: str) -> dict[str, Path]:
    """Folders with a `model/` each: `random`, and `trained` on the rows of KNOWN until it has them by heart."""
    tokenizer = byte_tokenizer(chat_template)
    model = tiny_llama(hidden_size=48, intermediate_size=96, max_position_embeddings=192, initializer_range=0.1)
    found = {"random": save_model(tmp_path_factory.mktemp("random"), model, tokenizer)}
    learn_by_heart(model, tokenizer, KNOWN)
    return {**found, "trained": save_model(tmp_path_factory.mktemp("trained"), model, tokenizer)}


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
    run_here: Callable[..., Path], random_model: Artifact, trained_model: Artifact, data: Artifact
) -> Callable[..., Path]:
    """Run the job; returns the folder of its files."""

    def do(config: dict[str, Any], **inputs: Artifact) -> Path:
        return run_here("evaluate", config, {"base": random_model, "tuned": trained_model, "data": data, **inputs})

    return do
