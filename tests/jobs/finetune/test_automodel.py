"""What AutoModel is told of the way in which the processes share a model."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from include.specs.finetune import Config
from jobs.finetune.automodel import recipe_config
from jobs.finetune.plan import Plan

GOOD: dict[str, Any] = {"steps": 10, "learning_rate": 0.1, "max_tokens": 64, "chat_template": "x"}


def distributed(backend: str, **changes: Any) -> dict[str, Any]:
    config = Config(**{**GOOD, "local_batch_size": 1, **changes})
    folder = Path("/nowhere")
    plan = Plan(SimpleNamespace(config=config), folder, folder, folder, micro_batch=1, resume=None)  # type: ignore[arg-type]
    return recipe_config(plan, backend=backend)["distributed"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_one_gpu_keeps_its_weights_in_the_type_that_was_asked_for(dtype: str) -> None:
    section = distributed("nccl", dtype=dtype)
    assert (section["strategy"], section["mp_policy"]) == ("fsdp2", {"param_dtype": dtype})
    assert distributed("gloo", dtype=dtype)["strategy"] == "ddp"


def test_gradients_stay_sharded_while_micro_batches_add_up() -> None:
    section = distributed("nccl", strategy="fsdp2", processes=8)
    assert section["defer_fsdp_grad_sync"] is False and "dp_replicate_size" not in section
    assert distributed("nccl", strategy="fsdp2", processes=16, nodes=2)["dp_replicate_size"] == 2
    assert "defer_fsdp_grad_sync" not in distributed("nccl", processes=8)


def test_automodel_takes_the_section(automodel: None) -> None:
    import torch
    from nemo_automodel.recipes._dist_utils import parse_distributed_section

    parsed = parse_distributed_section(distributed("nccl", activation_checkpointing=True))
    assert parsed["strategy_config"].mp_policy.param_dtype == torch.float32
    assert parsed["activation_checkpointing"] is True
    sharded = parse_distributed_section(distributed("nccl", strategy="fsdp2", processes=8))
    assert sharded["strategy_config"].defer_fsdp_grad_sync is False
