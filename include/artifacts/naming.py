"""Names and digests: the same work has the same name, the same bytes have the same digest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

NAME_DIGITS = 20
"""Hex digits of a name's digest: 80 bits, so 10^9 artifacts collide with probability below 10^-6."""


_CHUNK_BYTES = 2**20


class _File(Protocol):
    @property
    def path(self) -> str: ...
    @property
    def size(self) -> int: ...
    @property
    def sha256(self) -> str: ...


def canonical_json(value: Any) -> bytes:
    """Return JSON with sorted keys, no white space and no NaN: equal values give equal bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def digest(value: Any) -> str:
    """Return the SHA-256 (hex) of a JSON value's canonical form."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


def file_digest(path: Path, *, on_progress: Callable[[], None] = lambda: None) -> str:
    """Return the SHA-256 (hex) of a file's bytes; `on_progress` is called after each MiB."""
    state, buffer = hashlib.sha256(), bytearray(_CHUNK_BYTES)
    with path.open("rb", buffering=0) as stream:
        while count := stream.readinto(buffer):
            state.update(memoryview(buffer)[:count])
            on_progress()
    return state.hexdigest()


def content_digest(files: Iterable[_File]) -> str:
    """Return the SHA-256 (hex) over (path, size, sha256) of an artifact's files, in the order of their paths."""
    return digest(sorted([file.path, file.size, file.sha256] for file in files))


def artifact_name(job: str, *, code: str, identity: Mapping[str, Any]) -> str:
    """Return the output name of `job`: `<job>-<digest of everything that can change the result>`.

    Args:
        job: the verb, as in `python -m jobs.<job>`.
        code: the job's code identity (see `include.code_identity`).
        identity: configuration fields that can change the result, and the content digests of the inputs.
    """
    return f"{job}-{digest({'job': job, 'code': code, 'identity': identity})[:NAME_DIGITS]}"


def checkpoint_name(run: str, step: int) -> str:
    """Return the name of the checkpoint that the run with output name `run` took after optimizer step `step`."""
    return f"{run}.step{step:08d}"
