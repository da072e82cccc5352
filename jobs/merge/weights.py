"""A base model with a LoRA adapter on it, checked to belong together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from include.errors import DataError, DivergenceError
from jobs.causal_lm import import_transformers, refuse_pickles

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

ADAPTER_WEIGHTS = "adapter_model.safetensors"


def attach_adapter(base: PreTrainedModel, folder: Path) -> PeftModel:
    """`base` with the adapter in `folder` (Hugging Face PEFT) in front of its weights.

    Raises:
        DataError: the adapter is a pickle, or was trained on another model: its weights do not fit this one's, or
            leave some of its own layers without a weight.
        DivergenceError: the adapter holds NaN or Inf.
    """
    refuse_pickles(folder)
    import_transformers()
    from peft import PeftConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
    from safetensors.torch import load_file

    foreign = "the adapter was trained on another base model: merge it into that one"
    weights = folder / ADAPTER_WEIGHTS
    if not weights.is_file():
        raise DataError(f"{folder} holds no {ADAPTER_WEIGHTS}: it is not an adapter in Hugging Face's format")
    tensors = load_file(weights)
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
    set_peft_model_state_dict(model, tensors)
    return model
