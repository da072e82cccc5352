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
        ({"method": "sft", "lora": {"dim": 4}}, "lora: belongs to method lora"),
        ({"processes": 3}, "global_batch_size 32 is not a multiple"),
        ({"local_batch_size": 8, "processes": 4, "nodes": 3}, "processes 4 cannot be shared evenly by 3 nodes"),
        ({"local_batch_size": 8, "processes": 2, "nodes": 2, "strategy": "fsdp2"}, "leave nothing to shard"),
        ({"local_batch_size": 8, "processes": 2, "activation_checkpointing": True}, "needs strategy: fsdp2"),
        ({"warmup_steps": 10}, "warmup_steps 10 leaves nothing of 10 steps"),
        ({"min_learning_rate": 0.2}, "min_learning_rate 0.2 is above learning_rate 0.1"),
        ({"learning_rte": 0.2}, "Extra inputs are not permitted"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Config(**{**GOOD, **changes})
