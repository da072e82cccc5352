"""Rows as labels: what is trained on, and which rows are refused."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from include.errors import DataError
from jobs.common.chat import encode_prompt, load_tokenizer
from jobs.finetune.dataset import IGNORE, EncodedRows, encode_file
from tests.jobs.models import TEMPLATE, conversation

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def tokenizer(base_folder: Path) -> Any:
    return load_tokenizer(base_folder / "model", TEMPLATE)


@pytest.fixture
def encode(tmp_path: Path, tokenizer: Any) -> Callable[..., Any]:
    def run(*rows: Any, max_tokens: int = 64) -> Any:
        file = tmp_path / "train.jsonl"
        file.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in rows))
        shutil.rmtree(tmp_path / "rows", ignore_errors=True)
        return encode_file(file, tokenizer, max_tokens, tmp_path / "rows")

    return run


def test_first_label_is_the_first_answer_token_and_the_last_is_the_end_of_turn(
    encode: Callable, tokenizer: Any, tmp_path: Path
) -> None:
    encode(conversation("a", "logs pod web-1", "kubectl logs web-1 -n prod"))
    sample = EncodedRows(str(tmp_path / "rows"))[0]
    trained = [label for label in sample["labels"] if label != IGNORE]
    assert trained == tokenizer(" kubectl logs web-1 -n prod<|end|>", add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(trained[0]).startswith(" k")
    assert trained[-1] == tokenizer.eos_token_id
    prompt = encode_prompt(tokenizer, conversation("a", "logs pod web-1", "kubectl")["messages"])
    assert sample["input_ids"][: len(prompt)] == prompt
    assert sample["labels"][: len(prompt) - 1] == [IGNORE] * (len(prompt) - 1)
    assert sample["labels"][len(prompt) - 1 :] == trained


def test_a_batch_is_padded_on_the_right_and_padding_is_not_trained_on(
    encode: Callable, tokenizer: Any, tmp_path: Path
) -> None:
    from nemo_automodel.components.datasets.utils import default_collater

    count = encode(conversation("a", "logs pod web-1", "kubectl logs web-1"), conversation("b", "get", "kubectl get"))
    rows = EncodedRows(str(tmp_path / "rows"))
    lengths = [len(rows[index]["input_ids"]) for index in range(2)]
    assert (count.rows, count.tokens, count.longest) == (2, sum(lengths) + 2, max(lengths) + 1)
    for _ in range(2):
        batch = default_collater([rows[0], rows[1]])
        assert batch["input_ids"].shape == (2, max(lengths))
        assert batch["input_ids"][1, lengths[1] :].tolist() == [tokenizer.pad_token_id] * (lengths[0] - lengths[1])
        assert set(batch["labels"][1, lengths[1] :].tolist()) == {IGNORE}
        assert batch["attention_mask"].sum(1).tolist() == lengths


@pytest.mark.remedy("raise finetune.max_tokens, or take the row out of the data set")
def test_a_row_that_is_too_long_is_taken_by_a_longer_limit_or_left_out(encode: Callable) -> None:
    good, long = conversation("a", "get", "kubectl get"), conversation("b", "pod " * 80, "kubectl get")
    with pytest.raises(DataError, match=r"raise finetune\.max_tokens, or take the row out of the data set$") as refused:
        encode(good, long)
    tokens = int(re.search(r"row 2 \(id b\) has (\d+) tokens, finetune\.max_tokens is 64", str(refused.value))[1])
    assert encode(good).rows == 1
    assert encode(good, long, max_tokens=tokens).longest == tokens


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ({"id": "bare"}, ["row 2", "KeyError"]),
        ({"id": "none", "messages": []}, ["row 2", "empty conversation"]),
        ('{"id": "cut", "mess', ["row 2", "JSONDecodeError"]),
    ],
)
def test_a_row_that_cannot_be_trained_on_is_named(encode: Callable, line: Any, words: list[str]) -> None:
    with pytest.raises(DataError) as caught:
        encode(conversation("good", "get", "kubectl get"), line)
    assert all(word in str(caught.value) for word in ["train.jsonl", *words]), str(caught.value)
