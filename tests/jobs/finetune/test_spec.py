from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from include.specs.finetune import Config

GOOD: dict[str, Any] = {"steps": 10, "learning_rate": 0.1, "max_tokens": 64, "chat_template": "x"}


def test_lora_is_the_default_method() -> None:
    assert Config(**GOOD).lora.dim == 16
    assert Config(**GOOD, method="sft").lora is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"processes": 3}, "global_batch_size 32 is not a multiple"),
        ({"local_batch_size": 8, "processes": 4, "nodes": 3}, "processes 4 cannot be shared evenly by 3 nodes"),
        ({"learning_rte": 0.2}, "Extra inputs are not permitted"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Config(**{**GOOD, **changes})


@pytest.mark.remedy(
    "remove it, or set finetune.method: lora", "set finetune.strategy: ddp, or raise finetune.processes"
)
@pytest.mark.remedy("set finetune.strategy: fsdp2, or finetune.activation_checkpointing: false")
@pytest.mark.remedy("lower finetune.warmup_steps, or raise finetune.steps", "lower finetune.min_learning_rate")
@pytest.mark.parametrize(
    ("changes", "message", "followed"),
    [
        (
            {"method": "sft", "lora": {"dim": 4}},
            "finetune.lora belongs to the method lora: remove it, or set finetune.method: lora",
            [{"lora": None}, {"method": "lora"}],
        ),
        (
            {"local_batch_size": 8, "processes": 2, "nodes": 2, "strategy": "fsdp2"},
            "leave nothing to shard: set finetune.strategy: ddp, or raise finetune.processes",
            [{"strategy": "ddp"}, {"processes": 4}],
        ),
        (
            {"local_batch_size": 8, "processes": 2, "activation_checkpointing": True},
            "set finetune.strategy: fsdp2, or finetune.activation_checkpointing: false",
            [{"strategy": "fsdp2"}, {"activation_checkpointing": False}],
        ),
        (
            {"warmup_steps": 10},
            "warmup_steps 10 leaves nothing of 10 steps: lower finetune.warmup_steps, or raise finetune.steps",
            [{"warmup_steps": 9}, {"steps": 11}],
        ),
        (
            {"min_learning_rate": 0.2},
            "min_learning_rate 0.2 is above learning_rate 0.1: lower finetune.min_learning_rate",
            [{"min_learning_rate": 0.1}],
        ),
    ],
)
def test_each_way_out_of_a_contradiction_is_one(
    changes: dict[str, Any], message: str, followed: list[dict[str, Any]]
) -> None:
    with pytest.raises(ValidationError, match=message):
        Config(**{**GOOD, **changes})
    for way in followed:
        Config(**{**GOOD, **changes, **way})
