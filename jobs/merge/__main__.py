"""`python -m jobs.merge`: one model folder out of base and adapter, proven to say the same."""

from __future__ import annotations

import gc
import json
from pathlib import Path
from typing import TYPE_CHECKING

from include.artifacts.store import Store
from include.errors import ConfigurationError, DataError
from include.specs.merge import Spec
from jobs.causal_lm import load_model
from jobs.chat import load_tokenizer
from jobs.heldout import encode_rows, read_rows
from jobs.runtime import Job, main

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def run(job: Job[Spec]) -> None:
    """Merge, save, load back, compare."""
    config = job.spec.config
    rows = read_rows(job.input("data") / "heldout.jsonl", config.parity.prompts)
    _require_same_base(job.spec)
    base, tuned = job.input("base") / "model", job.input("tuned")
    whole = (tuned / "model").is_dir()

    tokenizer = load_tokenizer(tuned / "model" if whole else base, config.chat_template)
    conversations = encode_rows(tokenizer, rows, config.max_tokens)
    pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id

    from jobs.merge.parity import compare, require, save_logits
    from jobs.merge.weights import attach_adapter

    if whole:
        job.event("loading", progress=0.1, model="tuned")
        unmerged = load_model(tuned / "model", "float32")
    else:
        job.event("loading", progress=0.1, model="base and adapter")
        unmerged = attach_adapter(load_model(base, "float32"), tuned / "adapter")
    save_logits(unmerged, conversations, pad_id, job.scratch)
    job.event("read_unmerged", progress=0.4, prompts=len(rows))

    merged = unmerged if whole else unmerged.merge_and_unload()
    folder = job.output / "model"
    job.metrics["parameters"] = merged.num_parameters()
    _save(merged, tokenizer, config.dtype, folder)
    del unmerged, merged
    gc.collect()
    job.event("saved", progress=0.6, parameters=job.metrics["parameters"], dtype=config.dtype)

    agreement = compare(load_model(folder), conversations, pad_id, job.scratch)
    job.metrics.update(agreement._asdict())
    job.event("compared", progress=1.0, **agreement._asdict())
    require(agreement, config.parity)
    (job.output / "parity.json").write_text(json.dumps(agreement._asdict(), indent=1) + "\n", encoding="utf-8")


def _require_same_base(spec: Spec) -> None:
    """Refuse an adapter whose manifest names other bytes as its base than this run's."""
    store, name = Store.of(spec.inputs.tuned.uri)
    manifest = store.manifest(name)
    recorded = manifest.inputs.get("base") if manifest is not None else None
    if recorded is not None and recorded.digest != spec.inputs.base.digest:
        raise ConfigurationError(
            f"{spec.inputs.tuned.uri} was tuned on the base model {recorded.digest[:12]} ({recorded.uri}), this run "
            f"gives {spec.inputs.base.digest[:12]} ({spec.inputs.base.uri}): merge it into the base it was tuned on"
        )


def _save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, dtype: str, folder: Path) -> None:
    """Write a Hugging Face folder that generates without further settings."""
    import torch

    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        raise DataError(
            f"the tokenizer has {len(tokenizer)} tokens, the model {model.get_input_embeddings().num_embeddings}: "
            "they belong to different models"
        )
    for settings in (model.config, model.generation_config):
        settings.bos_token_id = tokenizer.bos_token_id
        settings.eos_token_id = tokenizer.eos_token_id
        settings.pad_token_id = tokenizer.pad_token_id
    model.to(getattr(torch, dtype)).save_pretrained(str(folder))
    tokenizer.save_pretrained(str(folder))


if __name__ == "__main__":
    main("merge", run)
