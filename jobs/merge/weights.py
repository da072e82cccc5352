"""Attach a LoRA adapter to a base model, and check that they belong together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from include.errors import DataError, DivergenceError
from jobs.common.causal_lm import import_transformers, require_safetensors
from jobs.merge.streamed import Update

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import PreTrainedModel

ADAPTER_WEIGHTS = "adapter_model.safetensors"


def attach_adapter(base: PreTrainedModel, folder: Path) -> PeftModel:
    """Return `base` with the adapter in `folder` (Hugging Face PEFT) attached.

    Raises:
        DataError, DivergenceError: as `fit` does.
    """
    from peft import set_peft_model_state_dict

    model, tensors = fit(base, folder)
    set_peft_model_state_dict(model, tensors)
    return model


def updates(base: PreTrainedModel, folder: Path) -> dict[str, Update] | None:
    """Return what the adapter in `folder` adds to each weight of `base`, which need not hold its own weights.

    Returns:
        Updates by the weight's name; None for an adapter that is not a plain LoRA of linear layers, which PEFT itself
        has to merge.

    Raises:
        DataError, DivergenceError: as `fit` does.
    """
    import torch
    from peft.tuners.lora import Linear

    model, tensors = fit(base, folder)
    found = {}
    for name, layer in model.base_model.model.named_modules():
        if not isinstance(layer, Linear):
            continue
        if layer.use_dora.get("default") or not isinstance(layer.get_base_layer(), torch.nn.Linear):
            return None
        a, b = (tensors.pop(f"base_model.model.{name}.lora_{side}.weight", None) for side in "AB")
        if a is None or b is None:
            return None
        found[f"{name}.weight"] = Update(a.float(), b.float(), scale=layer.scaling["default"])
    return found if not tensors else None


def fit(base: PreTrainedModel, folder: Path) -> tuple[PeftModel, dict[str, torch.Tensor]]:
    """Return `base` with layers for the adapter in `folder`, and the adapter's tensors by name, not loaded yet.

    Raises:
        DataError: the adapter is a pickle, or was trained on another model: its weights do not fit this one's, or
            leave some of its own layers without a weight.
        DivergenceError: the adapter holds NaN or Inf.
    """
    require_safetensors(folder)
    import_transformers()
    from peft import PeftConfig, get_peft_model, get_peft_model_state_dict
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    foreign = "the adapter was trained on another base model: merge it into that one"
    weights = folder / ADAPTER_WEIGHTS
    if not weights.is_file():
        raise DataError(f"{folder} holds no {ADAPTER_WEIGHTS}: it is not an adapter in Hugging Face's format")
    try:
        tensors = load_file(weights)
    except SafetensorError as error:
        raise DataError(
            f"{weights} is not a whole safetensors file ({error}): run the DAG again with refresh: [finetune]"
        ) from None
    broken = [name for name, tensor in tensors.items() if not tensor.isfinite().all()]
    if broken:
        raise DivergenceError(
            f"the adapter's weight {broken[0]} holds NaN or Inf ({len(broken)} of {len(tensors)} do): the training "
            "diverged; lower finetune.learning_rate"
        )
    try:
        config = PeftConfig.from_pretrained(str(folder), local_files_only=True)
        config.inference_mode = True
        config.base_model_name_or_path = base.name_or_path
        model = get_peft_model(base, config).eval()
        expected = get_peft_model_state_dict(model)
    except (OSError, ValueError, TypeError, json.JSONDecodeError) as error:
        raise DataError(
            f"{folder} does not go onto this base model ({' '.join(str(error).split())}): {foreign}"
        ) from error
    for name in sorted(expected.keys() ^ tensors.keys()):
        there, wanted = ("adapter", "base model") if name in tensors else ("base model", "adapter")
        raise DataError(f"{name} is in the {there} and not in the {wanted}: {foreign}")
    for name, tensor in tensors.items():
        if tensor.shape != expected[name].shape:
            raise DataError(
                f"{name} has the shape {tuple(tensor.shape)} in the adapter, {tuple(expected[name].shape)} on the "
                f"base model: {foreign}"
            )
    return model, tensors
