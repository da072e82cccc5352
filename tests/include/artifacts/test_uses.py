"""Uses that are noted, and artifacts that are removed: on a file system, and on S3."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from include.artifacts.manifest import Manifest
from include.artifacts.store import Store
from include.artifacts.uses import Run, note_uses, recorded_runs
from include.errors import ArtifactError

RUN = Run(dag_id="customize", run_id="manual__2026-01-01T00:00:00+00:00/../x")
LONG_AGO = datetime(2000, 1, 1, tzinfo=UTC)


@pytest.fixture(params=["local", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "local":
        return Store(f"file://{tmp_path}/store")
    return Store(f"s3://{request.getfixturevalue('s3_bucket')}/store")


def test_a_use_is_noted_once_a_run_and_becomes_newer(store: Store) -> None:
    assert store.last_use("data-1") is None
    note_uses(store, RUN, ["data-1", "data-2"])
    first = store.last_use("data-1")
    assert first is not None
    assert datetime.now(UTC) - first < timedelta(minutes=1)
    note_uses(store, RUN, ["data-1"])
    assert store.last_use("data-1") >= first
    assert recorded_runs(store) == [RUN]
    assert store.names() == []


def test_an_artifact_goes_with_its_files_and_leaves_the_others(store: Store, commit: Callable[..., Manifest]) -> None:
    for name in ("data-1", "data-10"):
        commit(name, {"a.txt": "one", "sub/b": b"\0"})
    assert store.remove("data-1", unless_used_after=LONG_AGO)
    assert store.names() == ["data-10"]
    assert not any(entry.path.startswith("data-1/") for entry in store.listing())
    assert not store.remove("data-1", unless_used_after=LONG_AGO)
    with store.open_files("data-10"):
        pass


def test_a_use_keeps_it(store: Store, commit: Callable[..., Manifest]) -> None:
    commit("data-1", {"a.txt": "one"})
    note_uses(store, RUN, ["data-1"])
    assert not store.remove("data-1", unless_used_after=LONG_AGO)
    assert store.read_bytes("data-1", "a.txt") == b"one"
    assert store.remove("data-1", unless_used_after=datetime.now(UTC) + timedelta(hours=1))


def test_a_use_that_comes_while_the_manifest_is_away_brings_it_back(
    store: Store, commit: Callable[..., Manifest], monkeypatch: pytest.MonkeyPatch
) -> None:
    commit("data-1", {"a.txt": "one"})
    remove = Store.remove_path

    def used_meanwhile(self: Store, path: str) -> None:
        remove(self, path)
        note_uses(store, RUN, ["data-1"])

    monkeypatch.setattr(Store, "remove_path", used_meanwhile)
    assert not store.remove("data-1", unless_used_after=LONG_AGO)
    assert store.read_bytes("data-1", "a.txt") == b"one"


def test_another_attempt_at_the_name_is_left_alone(store: Store, commit: Callable[..., Manifest]) -> None:
    commit("data-1", {"a.txt": "one"})
    with store.attempt("data-1") as other:
        assert store.remove("data-1", unless_used_after=LONG_AGO)
        (other.files / "a.txt").write_text("two")
    assert not store.is_local or other.folder.is_dir()


def test_a_damaged_manifest_is_not_removed(store: Store, commit: Callable[..., Manifest]) -> None:
    commit("data-1", {"a.txt": "one"})
    store.remove_path("data-1/manifest.json")
    assert store.create("data-1/manifest.json", b"{")
    with pytest.raises(ArtifactError):
        store.remove("data-1", unless_used_after=LONG_AGO)
    assert len(store.listing("data-1")) >= 2


@pytest.mark.parametrize("path", ["", "..", "../x", "/etc", "a/../../b", "."])
def test_nothing_outside_the_store_is_removed(store: Store, path: str) -> None:
    with pytest.raises(ArtifactError, match="nothing was removed"):
        store.remove_path(path)


def test_links_are_removed_and_not_followed(tmp_path: Path) -> None:
    store, outside = Store(f"file://{tmp_path}/store"), tmp_path / "outside"
    (outside / "deep").mkdir(parents=True)
    (outside / "deep" / "file").touch()
    folder = tmp_path / "store" / "data-1"
    folder.mkdir(parents=True)
    (folder / "link").symlink_to(outside)
    assert [entry.path for entry in store.listing("data-1")] == ["data-1/link"]
    with pytest.raises(ArtifactError, match="reached through a link"):
        store.remove_path("data-1/link/deep")
    store.remove_path("data-1/link")
    assert (outside / "deep" / "file").is_file()
    assert not folder.exists()


def test_what_vanishes_while_it_is_listed_hides_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / "store" / "data-1"
    folder.mkdir(parents=True)
    for number in range(2000):
        (folder / f"{number}").touch()
    listing = Store(f"file://{tmp_path}/store")
    gone = [folder / f"{number}" for number in range(0, 2000, 2)]
    remover = threading.Thread(target=lambda: [path.unlink() for path in gone])
    remover.start()
    found = [{entry.path for entry in listing.listing()} for _ in range(5)]
    remover.join()
    for names in found:
        assert {f"data-1/{number}" for number in range(1, 2000, 2)} <= names
