"""Merge a model that is never in memory: shard by shard, and some rows of a tensor at a time.

The file format is safetensors' own (https://github.com/huggingface/safetensors#format): eight bytes with the header's
length, the header as JSON, then every tensor's bytes at the offsets that the header names.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from math import prod
from mmap import mmap
from pathlib import Path
from typing import TYPE_CHECKING, Any

from include.durable import fsync
from include.errors import DataError

if TYPE_CHECKING:
    import torch

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"

_CHUNK_BYTES = 64 * 1024 * 1024
"""Bytes of a tensor that are in memory at once; a chunk has whole rows, at least one."""

_NAMES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
"""Number formats: torch's name, and safetensors'."""


@dataclass(frozen=True)
class Update:
    """The update of a weight by a LoRA adapter: `scale` · b @ a (Hu et al. 2021, arXiv:2106.09685).

    Attributes:
        a: float32 [rank, in].
        b: float32 [out, rank].
    """

    a: torch.Tensor
    b: torch.Tensor
    scale: float


@dataclass(frozen=True)
class Entry:
    """The place of a tensor's bytes in a shard, counted from the end of the header."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def numbers(self) -> int:
        return prod(self.shape)


class Shard:
    """A safetensors file, of which tensors are read in parts.

    Attributes:
        entries: by tensor name, in the order of their bytes.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as stream:
                length = int.from_bytes(stream.read(8), "little")
                if length > path.stat().st_size - 8:
                    raise ValueError("its header is longer than the file")
                header = json.loads(stream.read(length))
            self.metadata: dict[str, str] = header.pop("__metadata__", {})
            found = {
                name: Entry(entry["dtype"], tuple(entry["shape"]), *entry["data_offsets"])
                for name, entry in header.items()
            }
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{path} is not a safetensors file ({type(error).__name__}): it is damaged") from None
        self.start = 8 + length
        self.entries = dict(sorted(found.items(), key=lambda item: item[1].begin))

    def bytes(self, name: str, begin: int, size: int) -> mmap:
        """Return a part of a tensor as it is in the file.

        Raises:
            DataError: the file ends before it.
        """
        # Not from the heap, which keeps what is freed: the peak would be half as high again.
        data = mmap(-1, size)
        with self.path.open("rb", buffering=0) as stream:
            stream.seek(self.start + self.entries[name].begin + begin)
            if stream.readinto(data) != size:
                raise DataError(f"{self.path} ends within {name}: it is damaged")
        return data

    def read(self, name: str, first: int = 0, rows: int | None = None) -> torch.Tensor:
        """Return `rows` rows of a tensor from row `first` on, by default all of it, in the file's format.

        Raises:
            DataError: the file ends before them, or holds the tensor in another format than those known here.
        """
        import torch

        entry = self.entries[name]
        formats = {short: getattr(torch, long) for long, short in _NAMES.items()}
        if entry.dtype not in formats:
            raise DataError(f"{self.path}: {name} is kept as {entry.dtype}, not as {', '.join(_NAMES)}: convert it")
        shape, size = entry.shape, entry.end - entry.begin
        begin = 0
        if rows is not None:
            begin, shape, size = first * size // shape[0], (rows, *shape[1:]), rows * size // shape[0]
        if not size:
            return torch.empty(shape, dtype=formats[entry.dtype])
        return torch.frombuffer(self.bytes(name, begin, size), dtype=formats[entry.dtype]).reshape(shape)


def shards(folder: Path) -> list[Shard]:
    """Return the shards of a Hugging Face folder.

    Raises:
        DataError: there are none, or one is missing.
    """
    names = [SINGLE]
    if (folder / INDEX).is_file():
        names = sorted(set(json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values()))
    return [Shard(folder / name) for name in names]


def weight_bytes(folder: Path) -> int:
    """Return the size in bytes of all safetensors files in a folder."""
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def write(
    source: Path, updates: Mapping[str, Update], dtype: str, target: Path, progress: Callable[[float], object]
) -> int:
    """Write the weights of the model in `source`, updated, in shards of the same names.

    Args:
        updates: by the name of the weight that they are added to; all of them are in `source`.
        dtype: torch's name of the type in which floating-point weights are written.
        progress: called with the share that is written, in 0…1, after every shard.

    Returns:
        The number of parameters.
    """
    parts = shards(source)
    weight_map: dict[str, str] = {}
    total = size = 0
    # The disk writes one shard while the next is merged.
    with ThreadPoolExecutor(1) as disk:
        waiting: list[Future[None]] = []
        for number, shard in enumerate(parts, start=1):
            header = _header(shard, _NAMES[dtype])
            with (target / shard.path.name).open("wb") as stream:
                stream.write(header)
                for name, entry in shard.entries.items():
                    for data in _merged(shard, name, updates.get(name), dtype):
                        stream.write(data)
                        size += len(data)
                    weight_map[name] = shard.path.name
                    total += entry.numbers
            waiting.append(disk.submit(fsync, target / shard.path.name))
            progress(number / len(parts))
        for future in waiting:
            future.result()
    if len(parts) > 1:
        index = {"metadata": {"total_parameters": total, "total_size": size}, "weight_map": weight_map}
        (target / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return total


def _header(shard: Shard, floating: str) -> bytes:
    entries: dict[str, Any] = {"__metadata__": shard.metadata or {"format": "pt"}}
    begin = 0
    for name, entry in shard.entries.items():
        kind = floating if entry.dtype in _NAMES.values() else entry.dtype
        end = begin + (entry.end - entry.begin if kind == entry.dtype else entry.numbers * (4 if kind == "F32" else 2))
        entries[name] = {"dtype": kind, "shape": list(entry.shape), "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _merged(shard: Shard, name: str, update: Update | None, dtype: str) -> Iterator[memoryview | mmap]:
    """Yield the tensor's bytes as they are written, chunk by chunk."""
    import torch

    entry = shard.entries[name]
    if update is None and (entry.dtype == _NAMES[dtype] or entry.dtype not in _NAMES.values()):
        for begin in range(0, entry.end - entry.begin, _CHUNK_BYTES):
            yield shard.bytes(name, begin, min(_CHUNK_BYTES, entry.end - entry.begin - begin))
        return
    if not entry.shape or not entry.numbers:
        yield _bytes(shard.read(name).to(getattr(torch, dtype)))
        return
    rows = max(1, _CHUNK_BYTES * entry.shape[0] // (4 * entry.numbers))
    for first in range(0, entry.shape[0], rows):
        chunk = shard.read(name, first, min(rows, entry.shape[0] - first)).float()
        if update is not None:
            chunk.addmm_(update.b[first : first + len(chunk)], update.a, alpha=update.scale)
        yield _bytes(chunk.to(getattr(torch, dtype)))


def _bytes(tensor: torch.Tensor) -> memoryview:
    import torch

    return memoryview(tensor.reshape(-1).view(torch.uint8).numpy())
