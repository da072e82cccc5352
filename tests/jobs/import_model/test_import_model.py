"""Importing a base model: what is taken, and what is refused with one sentence."""

from __future__ import annotations

import json
import math
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

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
from tests.faults.scenario import scenario
from tests.jobs.hostile import Spoil, configured, own_code, pickled, rubbish

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


def second_set_of_weights(folder: Path) -> None:
    save_file({"embed": np.ones((4, 2), np.float32)}, folder / "consolidated.safetensors")


def index_of(*listed: tuple[str, str]) -> Callable[[Path], None]:
    return write("model.safetensors.index.json", json.dumps({"weight_map": dict(listed)}).encode())


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (drop("config.json"), "config.json is missing"),
        (write("config.json", b"[]"), "config.json holds no JSON object"),
        (write("config.json", b"{}"), "names no model_type"),
        (write("tokenizer_config.json", b'{"auto_map": {}}'), "tokenizer_config.json has auto_map"),
        (write("config.json", b'{"model_type": "x", "vocab_size": 2}'), "has 3 tokens, the model embeds 2"),
        (drop("tokenizer.json"), "holds no tokenizer"),
        (drop(WEIGHTS), r"holds no \*\.safetensors"),
        (cut_weights, "not a whole safetensors file"),
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


def headed(header: dict[str, Any], length: int | None = None) -> Spoil:
    """Weights with a header of one's own, and a length that need not be its."""
    text = json.dumps(header).encode()
    content = struct.pack("<Q", len(text) if length is None else length) + text + bytes(64)
    return lambda folder, marker: (folder / WEIGHTS).write_bytes(content)


def tensor(begin: int, end: int, shape: tuple[int, ...] = (4, 2)) -> dict[str, Any]:
    return {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}


def nemo_archive(folder: Path, marker: Path) -> None:
    pickled("model_weights.ckpt")(folder, marker)
    with tarfile.open(folder / "model.nemo", "w") as archive:
        archive.add(folder / "model_weights.ckpt", "model_weights.ckpt")
    (folder / "model_weights.ckpt").unlink()


FOREIGN = "a base model that somebody gave us as a folder"
UNREAD = "the import ends with 65, names the file, and none of its code runs"


def given_model(when: str, spoil: Spoil, says: str) -> Any:
    return pytest.param(spoil, says, id=when, marks=scenario(given=FOREIGN, when=when, then=UNREAD))


NOT_WHOLE = f"{WEIGHTS} is not a whole safetensors file"


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        given_model("it holds a pickle, pytorch_model.bin", pickled("pytorch_model.bin"),
                    "pytorch_model.bin is a pickle"),
        given_model("it holds a pickle, weights.PT", pickled("weights.PT"), "weights.PT is a pickle"),
        given_model("it holds a pickle, tokenizer.pkl", pickled("tokenizer.pkl"), "tokenizer.pkl is a pickle"),
        given_model("it holds a .nemo archive", nemo_archive, "model.nemo is a pickle"),
        given_model("its model.safetensors is a pickle in truth", pickled(WEIGHTS), NOT_WHOLE),
        given_model("it brings Python code of its own", own_code(unknown=False), "config.json has auto_map"),
        given_model("it brings Python code for a kind of model of its own", own_code(unknown=True), "has auto_map"),
        given_model("the header's length is a lie", headed({"a": tensor(0, 32)}, length=2**62), NOT_WHOLE),
        given_model("two tensors share their bytes", headed({"a": tensor(0, 32), "b": tensor(16, 48)}), NOT_WHOLE),
        given_model("a tensor lies beyond the file's end", headed({"a": tensor(0, 2**40)}), NOT_WHOLE),
        given_model("a tensor's shape overflows", headed({"a": tensor(0, 64, (2**40, 2**40))}), NOT_WHOLE),
        given_model("config.json holds NaN", configured(hidden_size=math.nan), "is not JSON (it holds NaN)"),
        given_model("config.json asks for 10^9 layers", configured(num_hidden_layers=10**9),
                    "num_hidden_layers 1000000000"),
        given_model("config.json asks for 10^12 tokens", configured(vocab_size=10**12), "vocab_size 1000000000000"),
        given_model("config.json names a negative size", configured(hidden_size=-1), "hidden_size -1"),
        given_model("config.json names a size in words", configured(vocab_size="many"), "vocab_size 'many'"),
        given_model("its tokenizer.json is rubbish", rubbish("tokenizer.json"), "tokenizer.json is not a tokenizer"),
        given_model("its config.json is rubbish", rubbish("config.json"), "config.json is not JSON"),
    ],
)  # fmt: skip
def test_a_model_that_could_harm_is_not_taken(
    refused: Callable[..., str], folder: Path, tmp_path: Path, spoil: Spoil, says: str
) -> None:
    marker = tmp_path / "it-ran"
    spoil(folder, marker)
    assert says in refused("import_model", {"source": str(folder)})
    assert not marker.exists()


@scenario(given=FOREIGN, when="the header has a gigabyte", then=UNREAD)
def test_a_header_of_a_gigabyte_is_not_read(folder: Path, reads: Callable[[object], None]) -> None:
    """Without the job, which would copy it first."""
    with (folder / WEIGHTS).open("wb") as stream:
        stream.write(struct.pack("<Q", 2**30))
        stream.truncate(2**30 + 100)
    with pytest.raises(DataError, match=NOT_WHOLE) as refused:
        validate(folder)
    reads(refused.value)


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
