"""Models whose weights are in memory only while the layer that they belong to computes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.common.causal_lm import import_transformers
from jobs.merge.streamed import Shard, Update, shards

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


def empty_model(folder: Path) -> PreTrainedModel:
    """Return the model of a Hugging Face folder without its weights."""
    import_transformers()
    from accelerate import init_empty_weights
    from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

    config = AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    with init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(config)
    if (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(str(folder), local_files_only=True)
    return model.eval()


def weight_names(model: PreTrainedModel, folder: Path) -> dict[str, str] | None:
    """Return the tensor in the folder's shards for every parameter, tied ones included; None where one has none.

    A model can arrange its weights differently from its files (fused experts, for example): it is loaded whole.
    """
    held = {name for shard in shards(folder) for name in shard.entries}
    tied = model.all_tied_weights_keys
    found = {}
    for name, _ in model.named_parameters(remove_duplicate=False):
        there = name if name in held else tied.get(name)
        if there not in held:
            return None
        found[name] = there
    return found


def stream_weights(folder: Path, updates: Mapping[str, Update]) -> PreTrainedModel:
    """Return the model of a folder, each layer of which reads its weights as float32 when it computes, and drops them.

    Args:
        updates: of an adapter, by weight. They are computed beside the layer, as in training, not added to the weight.
    """
    import torch

    model = empty_model(folder)
    names = weight_names(model, folder)
    assert names is not None
    holder = {name: shard for shard in shards(folder) for name in shard.entries}
    for path, module in model.named_modules():
        own = [name for name, _ in module.named_parameters(recurse=False)]
        if not own:
            continue
        tensors = {name: names[f"{path}.{name}" if path else name] for name in own}
        module.register_forward_pre_hook(_load(tensors, holder))
        module.register_forward_hook(_drop(own))
        if update := updates.get(f"{path}.weight"):
            module.register_forward_hook(_beside(update))
    # transformers reads the device of the first parameter.
    kind = type(model)
    model.__class__ = type(kind.__name__, (kind,), {"device": torch.device("cpu")})
    return model


def _load(tensors: Mapping[str, str], holder: Mapping[str, Shard]) -> Any:
    import torch

    def hook(module: torch.nn.Module, _arguments: Any) -> None:
        for name, tensor in tensors.items():
            weight = holder[tensor].read(tensor).float()
            setattr(module, name, torch.nn.Parameter(weight, requires_grad=False))

    return hook


def _drop(names: list[str]) -> Any:
    import torch

    def hook(module: torch.nn.Module, _arguments: Any, _output: Any) -> None:
        for name in names:
            empty = torch.empty_like(getattr(module, name), device="meta")
            setattr(module, name, torch.nn.Parameter(empty, requires_grad=False))

    return hook


def _beside(update: Update) -> Any:
    def hook(_module: Any, arguments: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        return output + arguments[0] @ update.a.T @ update.b.T * update.scale

    return hook
