"""The configuration of AutoModel's recipe, from one CPU core to many GPUs."""

from __future__ import annotations

from typing import Any

from include.specs.finetune import Config
from jobs.finetune.dataset import EncodedRows
from jobs.finetune.plan import Plan

_COMPONENTS = "nemo_automodel.components"

TIMEOUT_MINUTES = 30
"""How long ranks wait for each other; AutoModel's default of 1 is shorter than a checkpoint of a large model."""


def recipe_config(plan: Plan, *, backend: str) -> dict[str, Any]:
    """Return the sections of AutoModel's recipe (github.com/NVIDIA-NeMo/Automodel 0.7.0, `examples/llm_finetune`).

    Args:
        backend: of torch.distributed, `gloo` or `nccl`.
    """
    config = plan.spec.config
    sections: dict[str, Any] = {
        "seed": config.seed,
        "step_scheduler": {
            "global_batch_size": config.global_batch_size,
            "local_batch_size": plan.micro_batch,
            "max_steps": config.steps,
            # Never the limit, since an epoch has at least one step. AutoModel stops at whichever comes first.
            "num_epochs": config.steps,
            "val_every_steps": config.validate_every,
            "ckpt_every_steps": config.checkpoint_every,
            "save_checkpoint_every_epoch": False,
            # The checkpoint interval must not decide what is validated, and so which weights are the best.
            "validate_on_checkpoint": False,
        },
        "dist_env": {"backend": backend, "timeout_minutes": TIMEOUT_MINUTES},
        "distributed": _distributed(config, backend),
        "model": {
            "_target_": "nemo_automodel.NeMoAutoModelForCausalLM.from_pretrained",
            "pretrained_model_name_or_path": str(plan.base),
            "dtype": config.dtype,
        },
        "loss_fn": {"_target_": f"{_COMPONENTS}.loss.masked_ce.MaskedCrossEntropy"},
        "dataset": _rows(plan, "train"),
        "dataloader": _loader(),
        "validation_dataset": _rows(plan, "validation"),
        "validation_dataloader": _loader(),
        "optimizer": {
            "_target_": "torch.optim.AdamW",
            "lr": config.learning_rate,
            "betas": list(config.betas),
            "weight_decay": config.weight_decay,
        },
        "lr_scheduler": {
            "lr_decay_style": "cosine",
            "lr_warmup_steps": config.warmup_steps,
            "init_lr": config.min_learning_rate,
            "min_lr": config.min_learning_rate,
        },
        "clip_grad_norm": {"max_norm": config.clip_grad_norm},
        "checkpoint": {
            "enabled": True,
            "checkpoint_dir": str(plan.scratch / "checkpoints"),
            "model_save_format": "safetensors",
            "save_consolidated": "final",
            "max_recent_checkpoints": 1,
            # By the rank that wrote the shards: other nodes do not see them.
            "single_rank_consolidation": config.nodes > 1,
        },
    }
    if config.lora is not None:
        sections["peft"] = {
            "_target_": f"{_COMPONENTS}._peft.lora.PeftConfig",
            "target_modules": list(config.lora.target_modules),
            "dim": config.lora.dim,
            "alpha": config.lora.alpha,
            "dropout": config.lora.dropout,
            "lora_A_init": config.lora.init,
            "use_triton": False,
        }
    return sections


def _distributed(config: Config, backend: str) -> dict[str, Any]:
    section: dict[str, Any] = {
        "strategy": config.strategy,
        "activation_checkpointing": config.activation_checkpointing,
    }
    if config.processes == 1 and (backend == "nccl" or config.activation_checkpointing):
        # A single process shards nothing either way. AutoModel 0.7.0's ddp makes all weights bfloat16 on a GPU,
        # whatever `dtype` says, and does not get the checkpointing; its fsdp2 changes frozen weights alone, to the
        # policy's type.
        return {**section, "strategy": "fsdp2", "mp_policy": {"param_dtype": config.dtype}}
    if config.strategy == "fsdp2":
        # Otherwise each GPU holds all gradients in float32, not its share of them, while micro-batches add up.
        section["defer_fsdp_grad_sync"] = False
        if config.nodes > 1:
            # Sharded within a node and repeated on each: node 0 alone has all there is to save.
            section["dp_replicate_size"] = config.nodes
    return section


def _rows(plan: Plan, part: str) -> dict[str, Any]:
    return {
        "_target_": f"{EncodedRows.__module__}.{EncodedRows.__qualname__}",
        "folder": str(plan.rows / part),
        # The rows are tokens already; without this AutoModel builds a tokenizer of its own.
        "tokenizer": None,
    }


def _loader() -> dict[str, Any]:
    return {
        "_target_": "torchdata.stateful_dataloader.StatefulDataLoader",
        "collate_fn": f"{_COMPONENTS}.datasets.utils.default_collater",
    }
