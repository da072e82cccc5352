"""The folder of a Hugging Face model: which files belong to it, and which are refused."""

from __future__ import annotations

import json
from fnmatch import fnmatch
from pathlib import Path

from include.errors import DataError
from include.sources.fingerprint import Fingerprint, fingerprint_of

WANTED = (
    "config.json",
    "generation_config.json",
    "*.safetensors",
    "*.safetensors.index.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "README*",
    "LICENSE*",
    "NOTICE*",
)
"""Names of the files that are taken; folders within the folder are not."""

PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".dill", ".nemo")
"""Suffixes of files that can run code when they are loaded; a `.nemo` is a tar with some of them."""


def refuse_code(folder: Path) -> None:
    """Refuse a model or adapter that could run code of its own when it is loaded.

    Raises:
        DataError: it names the first pickle, or the configuration that asks for Python code beside it.
    """
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in PICKLES:
            raise DataError(
                f"{path} is a pickle, which can run code when it is loaded: convert the weights to safetensors, "
                "and remove it from the folder"
            )
    for name in ("config.json", "tokenizer_config.json"):
        try:
            settings = json.loads((folder / name).read_bytes())
        except (FileNotFoundError, ValueError, RecursionError):
            continue  # whoever reads its settings reports that
        if isinstance(settings, dict) and "auto_map" in settings:
            raise DataError(
                f"{folder / name} has auto_map: this model runs Python code that comes with it, which is not trusted "
                "here; choose a model that transformers itself supports"
            )


def model_files(folder: Path) -> list[Path]:
    """Return the files that belong to the model in `folder`, sorted by name.

    Raises:
        DataError: there is no such folder.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: there is no such folder; check the path, and that this machine sees it")
    return sorted(
        path for path in folder.iterdir() if path.is_file() and any(fnmatch(path.name, pattern) for pattern in WANTED)
    )


def fingerprints(folder: str) -> tuple[Fingerprint, ...]:
    """Return one fingerprint a file of the model in `folder`; DataError as of `model_files`."""
    return tuple(fingerprint(path) for path in model_files(Path(folder)))


def fingerprint(path: Path) -> Fingerprint:
    """Return the fingerprint of one file, or of the file that a link points to; its path is the file's name."""
    return fingerprint_of(path.name, path.stat())
