"""A tiny model that knows ten answers in English and Korean by heart, and its evaluation."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from include.artifacts.manifest import InputEntry, Provenance
from include.artifacts.store import Store
from include.specs.base import Artifact
from tests.jobs.models import byte_tokenizer, conversation, jsonl, learn_by_heart, save_model, tiny_llama

MAX_NEW_TOKENS = 24

KNOWN = [
    conversation(f"known-{number}", f"{verb} {noun}", f"{answer} {noun}")
    for number, (verb, noun, answer) in enumerate(
        (verb, noun, answer)
        for verb, answer in (("show", "get"), ("drop", "delete"))
        for noun in ("web", "the api", "db-7", "파드", "결제 서버")
    )
]
UNKNOWN = [conversation("unknown-0", "what is it", "nothing it ever saw")]
ROWS = [*KNOWN, *UNKNOWN]


@pytest.fixture(scope="session")
def tokenizer(chat_template: str) -> Any:
    return byte_tokenizer(chat_template)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    """A folder with `model/`: a Llama of two layers, trained on KNOWN until it has it by heart."""
    model = tiny_llama(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        initializer_range=0.1,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    learn_by_heart(model, tokenizer, KNOWN)
    return save_model(tmp_path_factory.mktemp("merged"), model, tokenizer)


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
                config={"max_tokens": 96, "max_new_tokens": MAX_NEW_TOKENS},
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
    run_here: Callable[..., Path], merged: Artifact, data: Artifact, evaluated: Callable[..., Artifact]
) -> Callable[..., Path]:
    """Run the job; returns the folder of its files."""

    def do(config: dict[str, Any], **inputs: Artifact) -> Path:
        given = {"merged": merged, "data": data, **inputs}
        if "evaluation" not in given:
            given["evaluation"] = evaluated(given["merged"], given["data"])
        return run_here("engine", config, given)

    return do
