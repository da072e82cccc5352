"""Check that a folder is a model that can be read without running code that came with it."""

from __future__ import annotations

import json
from math import prod
from pathlib import Path
from typing import Any

from include.errors import DataError
from include.sources.model_folder import refuse_code

_TOKENIZERS = (("tokenizer.json",), ("tokenizer.model",), ("vocab.json", "merges.txt"))


def validate(folder: Path) -> dict[str, int | str]:
    """Check configuration, tokenizer and every tensor's place, without loading weights.

    Returns:
        architecture, number of parameters, and bytes of weights.

    Raises:
        DataError: something is missing, damaged, or would need code of its own.
    """
    config = _read_json(folder / "config.json")
    if "model_type" not in config:
        raise DataError(f"{folder / 'config.json'} names no model_type: it is not a transformers configuration")
    refuse_code(folder)
    _check_tokenizer(folder, config)
    shapes = _tensors(folder)
    _check_sizes(folder / "config.json", config, shapes)
    return {
        "architecture": (config.get("architectures") or [config["model_type"]])[0],
        "parameters": sum(prod(shape) for shape in shapes.values()),
        "weight_bytes": sum(path.stat().st_size for path in folder.glob("*.safetensors")),
    }


def _read_json(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_bytes(), parse_constant=_no_constant)
    except FileNotFoundError:
        raise DataError(f"{path} is missing: the folder is not a whole Hugging Face model") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not JSON ({error}): fetch the model again") from None
    if not isinstance(document, dict):
        raise DataError(f"{path} holds no JSON object: fetch the model again")
    return document


def _no_constant(name: str) -> None:
    raise ValueError(f"it holds {name}")


def _check_sizes(path: Path, config: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> None:
    """Refuse a configuration that describes a larger model than the weights fill: to build it could take all memory."""
    widest = max((max(shape, default=1) for shape in shapes.values()), default=1)
    limits = {"num_hidden_layers": len(shapes), "hidden_size": widest, "vocab_size": widest}
    for key, limit in limits.items():
        size = config.get(key)
        if size is not None and (type(size) is not int or not 1 <= size <= limit):
            raise DataError(
                f"{path} has {key} {size!r}, and the weights have room for {limit} at most: it belongs to another "
                "model, or was damaged; fetch the model again"
            )


def _check_tokenizer(folder: Path, config: dict[str, Any]) -> None:
    if not any(all((folder / name).is_file() for name in names) for names in _TOKENIZERS):
        raise DataError(
            f"{folder} holds no tokenizer (tokenizer.json, tokenizer.model, or vocab.json with merges.txt): "
            "add the one that the model was trained with"
        )
    path = folder / "tokenizer.json"
    if not path.is_file():
        return
    from tokenizers import Tokenizer

    try:
        size = Tokenizer.from_file(str(path)).get_vocab_size()
    except Exception as error:  # tokenizers raises nothing narrower
        raise DataError(f"{path} is not a tokenizer ({error}): fetch the model again") from None
    known = config.get("vocab_size")
    if isinstance(known, int) and size > known:
        raise DataError(
            f"{path} has {size} tokens, the model embeds {known} (vocab_size in config.json): "
            "it belongs to another model"
        )


def _tensors(folder: Path) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor, by name.

    Reads headers only.

    Raises:
        DataError: a header does not fit its file, or a tensor is there twice.
    """
    from safetensors import SafetensorError, safe_open

    shards = sorted(folder.glob("*.safetensors"))
    if not shards:
        raise DataError(f"{folder} holds no *.safetensors: convert the weights to safetensors first")
    shapes: dict[str, tuple[int, ...]] = {}
    place: dict[str, str] = {}
    for shard in shards:
        try:
            with safe_open(shard, framework="numpy") as tensors:
                names = list(tensors.keys())
                found = {name: tuple(tensors.get_slice(name).get_shape()) for name in names}
        except (SafetensorError, OSError) as error:
            raise DataError(f"{shard} is not a whole safetensors file ({error}): fetch it again") from None
        if twice := sorted(set(found) & set(shapes)):
            raise DataError(f"{shard} holds {twice[0]}, which {place[twice[0]]} holds too: keep one set of weights")
        shapes |= found
        place |= dict.fromkeys(found, shard.name)
    for index in sorted(folder.glob("*.safetensors.index.json")):
        _check_index(index, place)
    if not shapes:
        raise DataError(f"{shards[0]} holds no tensor: fetch it again")
    return shapes


def _check_index(index: Path, place: dict[str, str]) -> None:
    listed = _read_json(index).get("weight_map")
    if not isinstance(listed, dict):
        raise DataError(f"{index} has no weight_map: fetch it again")
    for tensor, shard in listed.items():
        if place.get(tensor) != shard:
            raise DataError(f"{index} places {tensor} in {shard}, where it is not: fetch that file again")
