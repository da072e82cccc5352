"""What is put into Triton's repository, without a server."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from include.artifacts.store import Store
from include.errors import ArtifactError, ConfigurationError
from include.specs.base import Artifact
from jobs.serving.triton.config import Rehearsal, Serving, parse, render
from jobs.serving.triton.repository import install, remove, verify
from tests.faults.scenario import scenario
from tests.jobs.serving.triton.conftest import release
from tests.jobs.serving.triton.engine_fixture import commit_engine


def snapshot(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {
        str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_a_release_is_installed_once_and_never_changed(tmp_path: Path, engine: Artifact) -> None:
    name = install(tmp_path, release(engine))
    assert name.startswith("kubectl-v1-")
    before = snapshot(tmp_path)
    assert install(tmp_path, release(engine)) == name
    assert snapshot(tmp_path) == before
    assert {path.name for path in (tmp_path / "models" / name / "1").iterdir()} == {
        "model.py", "writer.py", "text.py", "hardware.py", "__pycache__",
    }  # fmt: skip
    assert not list(tmp_path.glob(".scratch-*"))


def test_the_name_says_what_a_release_is_made_of(tmp_path: Path, engine: Artifact, endless: Artifact) -> None:
    names = {
        install(tmp_path, release(engine)),
        install(tmp_path, release(endless)),
        install(tmp_path, release(engine, 2)),
        install(tmp_path, release(engine), "slow"),
        install(tmp_path, release(engine), "garbled"),
        install(tmp_path, release(engine), serving=Serving(threads=2)),
    }
    assert len(names) == 6
    assert len({name.rpartition("-")[2] for name in names}) == 5, "the same engine as version 2 is made of the same"


def test_production_runs_the_same_model_as_a_drill(tmp_path: Path, engine: Artifact) -> None:
    sound, drill = install(tmp_path, release(engine)), install(tmp_path, release(engine), "failing")
    models = tmp_path / "models"
    assert (models / drill / "1" / "served.py").read_bytes() == (models / sound / "1" / "model.py").read_bytes()
    assert "drill" not in (models / sound / "config.pbtxt").read_text()


def test_another_engine_than_planned_is_refused(tmp_path: Path, engine: Artifact) -> None:
    wrong = engine.model_copy(update={"digest": "0" * 64})
    with pytest.raises(ArtifactError, match="other bytes"):
        install(tmp_path, release(wrong))
    assert not list((tmp_path / "engines").glob("*"))
    assert not (tmp_path / "models").exists()


def flip(path: Path) -> None:
    """Flip the last bit of a file."""
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))


PROVEN = "an engine that was proven against its model"
NOT_LOADED = "it is not loaded"


@scenario(given=PROVEN, when="one bit of its weights is flipped before its release", then=NOT_LOADED)
def test_an_altered_engine_is_refused(
    tmp_path: Path, store: Store, engine_folder: Path, reads: Callable[[object], None]
) -> None:
    engine = commit_engine(store, "engine-1", engine_folder)
    (weights,) = tmp_path.rglob("model.bin")
    flip(weights)
    with pytest.raises(ArtifactError, match=r"engine/model\.bin was altered") as refused:
        install(tmp_path / "serving", release(engine))
    reads(refused.value)


@scenario(given=PROVEN, when="one bit of the serving side's copy is flipped", then=NOT_LOADED)
def test_an_altered_copy_is_refused(tmp_path: Path, engine: Artifact, reads: Callable[[object], None]) -> None:
    install(tmp_path, release(engine))
    (copy,) = (tmp_path / "engines" / engine.digest[:16]).rglob("model.bin")
    flip(copy)
    with pytest.raises(ArtifactError, match="was altered after it was copied") as refused:
        install(tmp_path, release(engine, 2))
    reads(refused.value)
    with pytest.raises(ArtifactError, match="was altered"):
        verify(tmp_path, release(engine))


def test_the_copy_is_private(tmp_path: Path, engine_store: Store, engine: Artifact) -> None:
    install(tmp_path, release(engine))
    _, name = Store.of(engine.uri)
    with engine_store.open_files(name) as source:
        for path in source.rglob("*"):
            if path.is_file():
                copy = tmp_path / "engines" / engine.digest[:16] / path.relative_to(source)
                assert copy.read_bytes() == path.read_bytes()
                assert copy.stat().st_ino != path.stat().st_ino


def test_removal_takes_the_engine_with_its_last_release(tmp_path: Path, engine: Artifact) -> None:
    first, second = install(tmp_path, release(engine)), install(tmp_path, release(engine, 2))
    remove(tmp_path, first)
    assert [path.name for path in (tmp_path / "models").iterdir()] == [second]
    assert len(list((tmp_path / "engines").iterdir())) == 1
    remove(tmp_path, second)
    remove(tmp_path, second)
    assert not list((tmp_path / "models").iterdir())
    assert not list((tmp_path / "engines").iterdir())


def test_removal_by_another_spelling_of_the_folder_leaves_engines_in_use(tmp_path: Path, engine: Artifact) -> None:
    folder, alias = tmp_path / "serving", tmp_path / "alias"
    first, second = install(folder, release(engine)), install(folder, release(engine, 2))
    alias.symlink_to(folder)
    for spelling, name in ((alias, first), (folder / ".." / "serving", first)):
        remove(spelling, name)
        assert [path.name for path in (folder / "engines").iterdir()] == [engine.digest[:16]]
    remove(alias, second)
    assert not list((folder / "engines").iterdir())


def test_two_may_install_at_once(tmp_path: Path, engine: Artifact) -> None:
    with ThreadPoolExecutor(4) as pool:
        names = set(pool.map(lambda _: install(tmp_path, release(engine)), range(8)))
    assert len(names) == 1


def test_the_configuration_reads_back(tmp_path: Path) -> None:
    serving = Serving(max_batch=8, queue_delay_microseconds=7, queue_size=5, queue_seconds=1.5, instances=2, threads=3)
    rehearsal = Rehearsal(drill="slow", after_requests=4, after_seconds=2.5)
    config = parse(render("kubectl-v1-0", tmp_path, serving, rehearsal), where="config.pbtxt")
    assert (config.name, config.backend, config.max_batch_size) == ("kubectl-v1-0", "python", 8)
    assert config.dynamic_batching.max_queue_delay_microseconds == 7
    assert not config.dynamic_batching.HasField("default_queue_policy"), "it stalls the batcher of tritonserver 2.51"
    assert config.instance_group[0].count == 2
    assert config.model_transaction_policy.decoupled
    assert {key: value.string_value for key, value in config.parameters.items()} == {
        "engine": str(tmp_path),
        "threads": "3",
        "queue_size": "5",
        "queue_seconds": "1.5",
        "drill": "slow",
        "drill_after_requests": "4",
        "drill_after_seconds": "2.5",
    }


def test_what_is_no_configuration_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"x/config.pbtxt is not a model configuration"):
        parse('name: "a" no_such_key: 3', where="x/config.pbtxt")
