"""Importing a base model: what is taken, and what is refused with one sentence."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models

from include.errors import DataError, TryAgainError
from include.sources.model_folder import fingerprints
from include.specs.import_model import Config
from jobs.import_model.source import copy, locate
from jobs.import_model.validation import validate

WEIGHTS = "model.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small whole model: two tensors of 24 parameters together, a tokenizer of three tokens."""
    root = tmp_path / "source"
    root.mkdir()
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 4}
    (root / "config.json").write_text(json.dumps(config))
    Tokenizer(models.WordLevel({"a": 0, "b": 1, "[UNK]": 2}, unk_token="[UNK]")).save(str(root / "tokenizer.json"))
    save_file({"embed": np.ones((4, 2), np.float32), "head": np.ones((8, 2), np.float32)}, root / WEIGHTS)
    (root / "README.md").write_text("a model\n")
    (root / "train.log").write_text("not taken\n")
    return root


def test_the_job_takes_the_model_byte_for_byte_and_nothing_else(run_job, folder: Path):
    outcome = run_job("import_model", {"source": str(folder)})
    taken = {path.name: path.read_bytes() for path in (outcome.folder / "model").iterdir()}
    names = ["README.md", "config.json", WEIGHTS, "tokenizer.json"]
    assert taken == {name: (folder / name).read_bytes() for name in names}
    assert outcome.manifest.metrics["parameters"] == 24
    assert outcome.manifest.metrics["architecture"] == "LlamaForCausalLM"
    assert "left_out=1" in outcome.stdout


def test_the_job_ends_a_pickle_with_its_name_and_the_remedy(run_job, folder: Path):
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    outcome = run_job("import_model", {"source": str(folder)}, expect=65)
    assert "pytorch_model.bin is a pickle" in outcome.error
    assert "convert the weights to safetensors" in outcome.error
    assert outcome.manifest is None


def test_the_job_does_not_reach_for_the_hub_on_an_offline_platform(run_job):
    outcome = run_job("import_model", {"source": "some/model", "revision": "0" * 40}, expect=64)
    assert "give the local folder as source" in outcome.error


def drop(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def write(name: str, data: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(data)


def cut_weights(folder: Path) -> None:
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[:-5])


def overlap_weights(folder: Path) -> None:
    header = json.dumps(
        {
            "embed": {"dtype": "F32", "shape": [4, 2], "data_offsets": [0, 32]},
            "head": {"dtype": "F32", "shape": [4, 2], "data_offsets": [0, 32]},
        }
    ).encode()
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", len(header)) + header + bytes(32))


def second_set_of_weights(folder: Path) -> None:
    save_file({"embed": np.ones((4, 2), np.float32)}, folder / "consolidated.safetensors")


def index_of(*listed: tuple[str, str]) -> Callable[[Path], None]:
    return write("model.safetensors.index.json", json.dumps({"weight_map": dict(listed)}).encode())


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (drop("config.json"), "config.json is missing"),
        (write("config.json", b"{"), "config.json is not JSON"),
        (write("config.json", b"[]"), "config.json holds no JSON object"),
        (write("config.json", b"{}"), "names no model_type"),
        (write("config.json", b'{"model_type": "x", "auto_map": {}}'), "config.json has auto_map"),
        (write("tokenizer_config.json", b'{"auto_map": {}}'), "tokenizer_config.json has auto_map"),
        (write("config.json", b'{"model_type": "x", "vocab_size": 2}'), "has 3 tokens, the model embeds 2"),
        (drop("tokenizer.json"), "holds no tokenizer"),
        (write("tokenizer.json", b"{}"), "tokenizer.json is not a tokenizer"),
        (drop(WEIGHTS), r"holds no \*\.safetensors"),
        (write(WEIGHTS, b"\x80\x04\x95pickled bytes"), "not a whole safetensors file"),
        (cut_weights, "not a whole safetensors file"),
        (overlap_weights, "not a whole safetensors file"),
        (second_set_of_weights, "keep one set of weights"),
        (index_of(("embed", WEIGHTS), ("gone", WEIGHTS)), "places gone in model.safetensors"),
        (index_of(("embed", "model-00001-of-00002.safetensors")), "places embed in model-00001-of-00002"),
        (write("model.safetensors.index.json", b"{}"), "has no weight_map"),
    ],
)
def test_a_damaged_model_is_refused(folder: Path, damage: Callable[[Path], None], message: str):
    damage(folder)
    with pytest.raises(DataError, match=message):
        validate(folder)


def test_a_whole_model_passes(folder: Path):
    index_of(("embed", WEIGHTS), ("head", WEIGHTS))(folder)
    assert validate(folder)["parameters"] == 24


def test_a_folder_that_changed_since_planning_is_not_taken(folder: Path, tmp_path: Path):
    planned = Config(source=str(folder), files=fingerprints(str(folder)))
    assert locate(planned, tmp_path) == folder
    (folder / "config.json").write_text((folder / "config.json").read_text() + " ")
    with pytest.raises(TryAgainError, match="changed since this run was planned"):
        locate(planned, tmp_path)


def test_a_file_that_changes_while_read_is_not_taken(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import shutil

    original = shutil.copyfile

    def slow_copy(source: Path, target: Path) -> None:
        original(source, target)
        source.write_bytes(source.read_bytes() + b" ")

    monkeypatch.setattr(shutil, "copyfile", slow_copy)
    with pytest.raises(TryAgainError, match="changed while it was read"):
        copy(folder, tmp_path / "target")


def test_a_missing_folder_is_named(tmp_path: Path):
    with pytest.raises(DataError, match="no/where: there is no such folder"):
        locate(Config(source=f"{tmp_path}/no/where"), tmp_path)


def test_links_of_a_hub_cache_become_files(folder: Path, tmp_path: Path):
    blob = (folder / WEIGHTS).rename(tmp_path / "blob")
    (folder / WEIGHTS).symlink_to(blob)
    copy(folder, tmp_path / "target")
    taken = tmp_path / "target" / WEIGHTS
    assert not taken.is_symlink()
    assert taken.read_bytes() == blob.read_bytes()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"source": "org/model"}, "pin org/model to a commit"),
        ({"source": "org/model", "revision": "main"}, "should match pattern"),
        ({"source": "models/a/b"}, "neither an absolute path nor a hub repository"),
        ({"source": "/models/a", "revision": "0" * 40}, "is a local folder, which has none"),
    ],
)
def test_a_source_that_could_move_is_a_bad_configuration(config: dict, message: str):
    with pytest.raises(ValidationError, match=message):
        Config(**config)
