"""What makes a model folder run code, or break, where somebody loads it."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

Spoil = Callable[[Path, Path], object]
"""Changes a model folder; where code of it runs, the file that is named second exists."""

HOSTILE = "import os, pathlib\npathlib.Path({marker!r}).touch()\nclass Hostile: pass\n"


class Touch:
    """A pickle that makes a file when it is loaded."""

    def __init__(self, marker: Path) -> None:
        self._marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self._marker}",)


def pickled(name: str) -> Spoil:
    return lambda folder, marker: (folder / name).write_bytes(pickle.dumps(Touch(marker)))


def own_code(unknown: bool) -> Spoil:
    """Python files beside the weights, which the configuration names as the model's and the tokenizer's code."""

    def write(folder: Path, marker: Path) -> None:
        for name in ("configuration_x", "modeling_x", "tokenization_x"):
            (folder / f"{name}.py").write_text(HOSTILE.format(marker=str(marker)))
        classes = {"AutoConfig": "configuration_x.Hostile", "AutoModelForCausalLM": "modeling_x.Hostile"}
        edit_json(folder / "config.json", auto_map=classes, **({"model_type": "hostile"} if unknown else {}))
        edit_json(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["tokenization_x.Hostile", None]})

    return write


def configured(**changes: Any) -> Spoil:
    return lambda folder, marker: edit_json(folder / "config.json", **changes)


def rubbish(name: str) -> Spoil:
    return lambda folder, marker: (folder / name).write_bytes(os.urandom(5000))


def edit_json(path: Path, **changes: Any) -> None:
    document = json.loads(path.read_bytes()) if path.exists() else {}
    path.write_text(json.dumps(document | changes))
