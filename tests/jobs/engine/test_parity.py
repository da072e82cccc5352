"""The measure of parity: what it finds where weights differ, and where they do not."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from include.errors import DivergenceError
from include.specs.engine import Config
from jobs.common.engine_runtime import text
from jobs.common.heldout import encode_rows
from jobs.engine.ctranslate2 import CTranslate2Builder
from jobs.engine.parity import Agreement, Answered, Divergence, agreement, divergence, require

CONFIG = Config(max_tokens=96)

PERFECT = Divergence(positions=10, mean_kl=0.0, top1_agreement=1.0)
RIGHT = Answered("a", "a", True, True)


def copy_of(model: Any, folder: Path, tokenizer: Any) -> Path:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def served(tokenizer: Any) -> text.Text:
    return text.Text(tokenizer.backend_tokenizer, tokenizer.chat_template, {})


@pytest.fixture
def rows() -> list[dict[str, Any]]:
    return [
        {"id": str(number), "messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]}
        for number, (asked, answer) in enumerate(
            [
                ("show web", "get web"),
                ("drop 결제 서버", "delete 결제 서버"),
                ("x", "a longer answer than the question"),
            ]
        )
    ]


@pytest.mark.parametrize("kind", ["llama", "qwen2", "mistral"])
def test_an_engine_in_float32_agrees_to_rounding(
    kind: str, tokenizer: Any, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(
        kind,
        vocab_size=300,  # more than the tokenizer has, as real models do
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        initializer_range=0.2,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    model = AutoModelForCausalLM.from_config(config).eval()
    builder = CTranslate2Builder("float32")
    builder.build(copy_of(model, tmp_path / "model", tokenizer), tmp_path / "engine")
    engine = builder.open(tmp_path / "engine", served(tokenizer))
    conversations = encode_rows(tokenizer, rows, 128, stage="engine")
    found = divergence(model, engine, conversations, pad_id=0)
    assert found.positions == sum(sum(row.mask) for row in conversations)
    assert 0 <= found.mean_kl < 1e-9
    assert found.top1_agreement == 1.0


def test_greedy_answers_end_where_they_are_told(model_folder: Path, tokenizer: Any, tmp_path: Path) -> None:
    """The same answers as transformers, whatever the batch; cut off after exactly as many tokens as asked for."""
    from jobs.common.causal_lm import load_model
    from jobs.common.chat import encode_prompt
    from jobs.common.generation import greedy

    builder = CTranslate2Builder("float32")
    builder.build(model_folder / "model", tmp_path / "engine")
    engine = builder.open(tmp_path / "engine", served(tokenizer))
    model = load_model(model_folder / "model")
    asked = ["show web", "drop 결제 서버", "show db-7", "what is it, and why is it so much longer than the others?"]
    prompts = [encode_prompt(tokenizer, [{"role": "user", "content": prompt}]) for prompt in asked]
    for limit in (1, 8, 24):
        expected = greedy(model, prompts, max_new_tokens=limit, end_ids=[2], pad_id=0, batch_size=4)
        done: list[int] = []
        for batch_size in (1, 3, 4):
            found = engine.greedy(
                prompts, max_new_tokens=limit, end_ids=[2], batch_size=batch_size, on_batch=done.append
            )
            assert found == expected
        assert done == [1, 2, 3, 4, 3, 4, 4]
        assert {len(answer.ids) for answer in expected if not answer.finished} <= {limit}
    assert any(answer.finished for answer in expected)


def test_perturbed_weights_are_found_and_refused(
    model_folder: Path, tokenizer: Any, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    import torch

    from jobs.common.causal_lm import load_model

    model, other = load_model(model_folder / "model"), load_model(model_folder / "model")
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter += 0.03 * torch.randn_like(parameter)
    builder = CTranslate2Builder("float32")
    builder.build(copy_of(other, tmp_path / "model", tokenizer), tmp_path / "engine")
    engine = builder.open(tmp_path / "engine", served(tokenizer))
    found = divergence(model, engine, encode_rows(tokenizer, rows, 128, stage="engine"), pad_id=0)
    assert found.mean_kl > CONFIG.parity.max_mean_kl
    with pytest.raises(DivergenceError, match=r"mean KL .* \(limit 0\.001\)"):
        require(agreement(3, found, [RIGHT]), CONFIG)


def test_lost_and_won_rows_are_paired() -> None:
    lost, won, wrong = (
        Answered("a", "b", True, False),
        Answered("b", "a", False, True),
        Answered("b", "b", False, False),
    )
    found = agreement(4, PERFECT, [RIGHT] * 6 + [lost] * 3 + [won] + [wrong] * 2)
    assert (found.rows, found.lost, found.won) == (12, 3, 1)
    assert found.same_text == pytest.approx(8 / 12)
    assert found.merged_exact_match == pytest.approx(9 / 12)
    assert found.engine_exact_match == pytest.approx(7 / 12)
    assert found.score_loss == pytest.approx(2 / 12)
    assert 2 / 12 < found.score_loss_upper < 1


@pytest.mark.parametrize(
    "broken",
    [
        {"mean_kl": 2e-3},
        {"mean_kl": math.nan},
        {"top1_agreement": 0.98},
        {"top1_agreement": math.nan},
        {"same_text": 0.89},
        {"score_loss": 0.02},
        {"score_loss": math.nan},
    ],
)
def test_each_limit_alone_refuses(broken: dict[str, float]) -> None:
    good: Agreement = agreement(1, PERFECT, [RIGHT])
    require(good, CONFIG)
    with pytest.raises(DivergenceError, match="nothing was committed"):
        require(good._replace(**broken), CONFIG)
