"""Pretraining as a job: a model that others can load, the same bytes every time, and an honest failure."""

from __future__ import annotations

import json
import math
from itertools import islice
from statistics import fmean

import pytest
from pydantic import ValidationError

from include.errors import DivergenceError
from include.specs.demo.pretrain import Config
from jobs.demo.pretrain.corpus import documents
from jobs.demo.pretrain.model import IGNORED, batches, build_model, learning_rate, train
from jobs.demo.pretrain.tokenizer import train_tokenizer

SMALL = {
    "hidden_size": 32,
    "layers": 1,
    "heads": 2,
    "intermediate_size": 64,
    "batch_size": 8,
    "steps": 40,
    "warmup_steps": 5,
}


def test_two_runs_give_the_same_bytes_and_a_model_that_transformers_loads(run_job, tmp_path):
    outcome = run_job("pretrain", SMALL)
    first = outcome.manifest.content_digest
    (tmp_path / "store" / outcome.manifest.name / "manifest.json").unlink()
    again = run_job("pretrain", SMALL)
    assert again.manifest.content_digest == first
    assert again.manifest.attempt != outcome.manifest.attempt

    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = again.folder / "model"
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert model.num_parameters() == again.manifest.metrics["parameters"]
    assert model.config.vocab_size == len(tokenizer) == 1536
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    ids = tokenizer(" kubectl logs web-api -n prod", return_tensors="pt")["input_ids"]
    assert model(ids).logits.shape == (1, ids.shape[1], 1536)

    curve = [json.loads(line) for line in (again.folder / "loss.jsonl").read_text().splitlines()]
    assert [point["step"] for point in curve] == list(range(1, 41))
    losses = [point["loss"] for point in curve]
    assert fmean(losses[-10:]) < fmean(losses[:5]) - 0.5
    card = (folder / "README.md").read_text()
    assert f"{model.num_parameters():,} parameters" in card
    assert "synthetic" in card.lower()


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(documents(0), 1536)


@pytest.mark.parametrize(
    ("rate", "sentence"), [(1e30, "the loss became (nan|inf) at step"), (1e-12, "no better than guessing")]
)
def test_training_that_diverges_or_learns_nothing_ends_with_what_to_change(tokenizer, rate, sentence):
    config = Config(**SMALL | {"learning_rate": rate})
    model = build_model(config, tokenizer)
    with pytest.raises(DivergenceError, match=f"{sentence}.* learning_rate"):
        list(train(model, batches(documents(0), tokenizer, config), config))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"heads": 3}, "hidden_size 128 is not a multiple of heads"),
        ({"sequence_length": 1024}, "sequence_length 1024 is over max_position 512"),
    ],
)
def test_an_impossible_shape_is_refused_before_anything_starts(change, sentence):
    with pytest.raises(ValidationError, match=sentence):
        Config(**change)


def test_a_batch_holds_one_document_a_row_and_ignores_the_padding(tokenizer):
    config = Config(batch_size=6, sequence_length=48)
    taken = []
    for inputs, labels in islice(batches(documents(2), tokenizer, config), 8):
        assert inputs.shape == labels.shape
        assert len(inputs) == 6
        assert inputs.shape[1] <= 48
        for row, label in zip(inputs, labels, strict=True):
            kept = label != IGNORED
            assert row[0] == tokenizer.bos_token_id
            assert kept[0]
            assert (row[~kept] == tokenizer.pad_token_id).all()
            assert (row[kept] == label[kept]).all()
            taken.append(tokenizer.decode(row[kept], skip_special_tokens=True).rstrip("\ufffd"))
    texts = list(islice(documents(2), 48))
    assert all(any(text.startswith(one) for text in texts) for one in taken)
    assert all(any(text.startswith(one) for one in taken) for text in texts)


def test_padding_is_the_smaller_part_of_a_batch(tokenizer):
    data = islice(batches(documents(0), tokenizer, Config()), 16)
    kept = [(labels != IGNORED).float().mean().item() for _, labels in data]
    assert sum(kept) / len(kept) > 0.85


def test_the_learning_rate_warms_up_and_ends_at_zero():
    config = Config(steps=100, warmup_steps=10, learning_rate=0.5)
    rates = [learning_rate(step, config) for step in range(1, 101)]
    assert rates[:10] == pytest.approx([0.05 * step for step in range(1, 11)])
    assert max(rates) == rates[9] == pytest.approx(0.5)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert math.isclose(rates[-1], 0, abs_tol=1e-9)
