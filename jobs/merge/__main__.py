"""`python -m jobs.merge`: base and adapter merged into one model folder, and compared with the unmerged model."""

from __future__ import annotations

import gc
import json
from pathlib import Path
from typing import TYPE_CHECKING

from include.artifacts.store import Store
from include.errors import ConfigurationError, DataError
from include.specs.merge import Spec
from jobs.common.causal_lm import load_model, require_safetensors
from jobs.common.chat import load_tokenizer
from jobs.common.heldout import encode_rows, read_rows
from jobs.common.runtime import Job, main

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from jobs.merge.streamed import Update

STREAMED_PROMPTS = 4
"""Held-out rows that a streamed merge is compared on: on a CPU the comparison takes longer than the merge."""


def run(job: Job[Spec]) -> None:
    """Merge, save, load again, and compare with the unmerged model."""
    config = job.spec.config
    rows = read_rows(job.input("data") / "heldout.jsonl")
    _require_same_base(job.spec)
    base, tuned = job.input("base") / "model", job.input("tuned")
    source, adapter = (tuned / "model", None) if (tuned / "model").is_dir() else (base, tuned / "adapter")

    tokenizer = load_tokenizer(source, config.chat_template)
    conversations = encode_rows(tokenizer, rows, config.max_tokens, config.parity.prompts, stage="merge")
    pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id

    from jobs.merge.layerwise import stream_weights
    from jobs.merge.parity import compare, require, save_logits

    folder = job.output / "model"
    updates = _updates(source, adapter, config.stream_above)
    if updates is None:
        unmerged = _load(job, source, adapter)
        save_logits(unmerged, conversations, pad_id, job.scratch)
        job.event("read_unmerged", progress=0.4, prompts=len(conversations))
        _save_whole(job, unmerged if adapter is None else unmerged.merge_and_unload(), tokenizer)
        del unmerged
        gc.collect()
        merged = load_model(folder)
    else:
        conversations = conversations[:STREAMED_PROMPTS]
        _save_streamed(job, source, updates, tokenizer)
        save_logits(stream_weights(source, updates), conversations, pad_id, job.scratch)
        job.event("read_unmerged", progress=0.8, prompts=len(conversations))
        merged = stream_weights(folder, {})
    agreement = compare(merged, conversations, pad_id, job.scratch)
    job.metrics.update(agreement._asdict())
    job.event("compared", progress=1.0, **agreement._asdict())
    require(agreement, config)
    (job.output / "parity.json").write_text(json.dumps(agreement._asdict(), indent=1) + "\n", encoding="utf-8")


def _updates(source: Path, adapter: Path | None, stream_above: int) -> dict[str, Update] | None:
    """Return the updates of a model that is streamed, by weight; None for a model that is loaded whole."""
    from jobs.merge.layerwise import empty_model, weight_names
    from jobs.merge.streamed import weight_bytes
    from jobs.merge.weights import updates

    if weight_bytes(source) <= stream_above:
        return None
    require_safetensors(source)
    model = empty_model(source)
    if weight_names(model, source) is None:
        return None
    return {} if adapter is None else updates(model, adapter)


def _load(job: Job[Spec], source: Path, adapter: Path | None) -> PreTrainedModel | PeftModel:
    from jobs.merge.weights import attach_adapter

    job.event("loading", progress=0.1, model="tuned" if adapter is None else "base and adapter")
    model = load_model(source, "float32")
    return model if adapter is None else attach_adapter(model, adapter)


def _save_whole(job: Job[Spec], model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    import torch

    _set_generation_tokens(model, tokenizer)
    folder, dtype = job.output / "model", job.spec.config.dtype
    model.to(getattr(torch, dtype)).save_pretrained(str(folder))
    tokenizer.save_pretrained(str(folder))
    job.metrics["parameters"] = model.num_parameters()
    job.event("saved", progress=0.6, parameters=job.metrics["parameters"], dtype=dtype)


def _save_streamed(
    job: Job[Spec], source: Path, updates: dict[str, Update], tokenizer: PreTrainedTokenizerBase
) -> None:
    import torch

    from jobs.common.torch_threads import use_threads
    from jobs.merge.layerwise import empty_model
    from jobs.merge.streamed import write

    model = empty_model(source)
    use_threads(model.num_parameters())
    _set_generation_tokens(model, tokenizer)
    folder, dtype = job.output / "model", job.spec.config.dtype
    folder.mkdir()
    model.config.dtype = getattr(torch, dtype)
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(str(folder))
    model.generation_config.save_pretrained(str(folder))
    tokenizer.save_pretrained(str(folder))
    job.event("streaming", progress=0.1, weights_updated=len(updates))
    write(source, updates, dtype, folder, lambda share: job.event("merging", progress=round(0.1 + 0.5 * share, 3)))
    job.metrics["parameters"] = model.num_parameters()
    job.event("saved", progress=0.6, parameters=job.metrics["parameters"], dtype=dtype)


def _require_same_base(spec: Spec) -> None:
    """Refuse an adapter whose manifest names another base than this run's."""
    store, name = Store.of(spec.inputs.tuned.uri)
    manifest = store.manifest(name)
    recorded = manifest.inputs.get("base") if manifest is not None else None
    if recorded is not None and recorded.digest != spec.inputs.base.digest:
        raise ConfigurationError(
            f"{spec.inputs.tuned.uri} was tuned on the base model {recorded.digest[:12]} ({recorded.uri}), this run "
            f"gives {spec.inputs.base.digest[:12]} ({spec.inputs.base.uri}): merge it into the base it was tuned on"
        )


def _set_generation_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Set the tokenizer's special tokens in the model's configurations.

    Raises:
        DataError: the tokenizer belongs to another model.
    """
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        raise DataError(
            f"the tokenizer has {len(tokenizer)} tokens, the model {model.get_input_embeddings().num_embeddings}: "
            "they belong to different models"
        )
    for settings in (model.config, model.generation_config):
        settings.bos_token_id = tokenizer.bos_token_id
        settings.eos_token_id = tokenizer.eos_token_id
        settings.pad_token_id = tokenizer.pad_token_id


if __name__ == "__main__":
    main("merge", run)
