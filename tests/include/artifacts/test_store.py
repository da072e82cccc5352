"""An artifact exists completely or not at all, and is never taken for what it is not."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from include.artifacts.store import Store, split_uri
from include.errors import ArtifactError, ConfigurationError, TryAgainError
from tests.faults.scenario import scenario

PLANNED_WITH = "a data set that a merge was planned with"


def damage(when: str, *values: Any) -> Any:
    """Return a case that is a scenario: every job reads its inputs by the store, and ends on what it refuses."""
    then = "the job ends with 65, names it, and says what to do"
    return pytest.param(*values, id=when, marks=scenario(given=PLANNED_WITH, when=when, then=then))


def folder_of(store: Store, name: str) -> Path:
    manifest = store.manifest(name)
    assert manifest is not None
    return Path(store.root.removeprefix("file://")) / name / "attempts" / manifest.attempt / "files"


def manifest_path(store: Store, name: str) -> Path:
    return Path(store.root.removeprefix("file://")) / name / "manifest.json"


def test_commits_and_reads_back(store, commit):
    commit("data-1", {"a.txt": "one", "sub/b.bin": b"\0\1"}, metrics={"rows": 3})
    manifest = store.manifest("data-1")
    assert [(file.path, file.size) for file in manifest.files] == [("a.txt", 3), ("sub/b.bin", 2)]
    assert manifest.metrics == {"rows": 3}
    with store.open_files("data-1", digest=manifest.content_digest) as folder:
        assert (folder / "sub/b.bin").read_bytes() == b"\0\1"
    assert store.names("data") == ["data-1"]


def test_content_digest_depends_on_bytes_and_paths_alone(commit):
    one = commit("x-1", {"a": "same"})
    two = commit("x-2", {"a": "same"}, metrics={"other": 1})
    renamed = commit("x-3", {"b": "same"})
    assert one.content_digest == two.content_digest != renamed.content_digest


def test_nothing_exists_before_the_commit_and_nothing_stays_without_one(store):
    with store.attempt("half") as attempt:
        (attempt.files / "a").write_text("half")
        assert store.manifest("half") is None
    assert store.names() == []
    assert not attempt.files.exists()


def test_an_interruption_just_after_the_commit_takes_nothing_away(store, provenance, monkeypatch):
    def interrupted(folder):
        if store.manifest("late") is not None:
            raise KeyboardInterrupt

    monkeypatch.setattr("include.artifacts.files.fsync", interrupted)
    with pytest.raises(KeyboardInterrupt), store.attempt("late") as attempt:
        (attempt.files / "a").write_text("kept")
        attempt.commit(job="test", code="0", provenance=provenance)
    assert store.read_bytes("late", "a") == b"kept"


def test_of_two_writers_one_commits(store, provenance):
    with store.attempt("race") as first, store.attempt("race") as second:
        (first.files / "a").write_text("first")
        (second.files / "a").write_text("second")
        record = {"job": "test", "code": "0", "provenance": provenance}
        _, second_won = second.commit(**record)
        standing, first_won = first.commit(**record)
    assert (second_won, first_won) == (True, False)
    assert standing.attempt == second.id
    assert store.read_bytes("race", "a") == b"second"
    assert not first.files.exists()


def test_of_many_processes_exactly_one_commits(store, tmp_path):
    program = textwrap.dedent(
        """
        import sys
        from datetime import UTC, datetime
        from include.artifacts.manifest import Provenance
        from include.artifacts.store import Store
        now = datetime.now(UTC)
        cost = {"wall_seconds": 0, "cpu_seconds": 0, "peak_rss_bytes": 0}
        record = Provenance(started=now, finished=now, host="", python="", **cost)
        with Store(sys.argv[1]).attempt("race") as attempt:
            (attempt.files / "a").write_text(attempt.id)
            sys.stdin.readline()
            print(attempt.commit(job="test", code="0", provenance=record)[1])
        """
    )
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", program, store.root], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(6)
    ]
    for writer in writers:
        writer.stdin.write("go\n")
        writer.stdin.flush()
    assert sorted(writer.communicate()[0].strip() for writer in writers) == ["False"] * 5 + ["True"]
    attempts = Path(store.root.removeprefix("file://")) / "race" / "attempts"
    assert [path.parent.name for path in attempts.glob("*/files")] == [store.manifest("race").attempt]


def make_pipe(path):
    path.unlink()
    os.mkfifo(path)


def move_and_link(path):
    path.symlink_to(path.rename(path.parents[2] / "moved"))


def flatten(path):
    path.unlink()
    path.parent.rmdir()
    path.parent.touch()


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        damage("a file is missing", Path.unlink, "a.txt is missing"),
        damage("a file is truncated", lambda path: os.truncate(path, 2), "a.txt has 2 bytes, its manifest says 3"),
        damage("one bit of a file is flipped", lambda path: path.write_text("ond"), "a.txt was altered after its comm"),
        damage("a file is a link to the same bytes", move_and_link, "a.txt is a link"),
        damage("a file is a named pipe", make_pipe, "a.txt is a link or a special file"),
        pytest.param(flatten, "a.txt is missing", id="its folder is a file"),
    ],
)
def test_damage_is_refused_by_name(store, commit, reads, spoil, says):
    commit("data-1", {"a.txt": "one"})
    spoil(folder_of(store, "data-1") / "a.txt")
    with pytest.raises(ArtifactError, match=says) as refused, store.open_files("data-1"):
        pass
    reads(refused.value)
    with pytest.raises(ArtifactError, match="a.txt is missing or was altered"):
        store.read_bytes("data-1", "a.txt")


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        damage(
            "the manifest is of a newer schema",
            lambda m: m | {"schema_version": 4},
            "schema 4, this Anemone reads up to 3: update Anemone",
        ),
        damage(
            "the manifest lists ../../../../etc/passwd",
            lambda m: m | {"files": [m["files"][0] | {"path": "../../../../etc/passwd"}]},
            "not a plain relative path",
        ),
        damage(
            "the manifest lists /etc/passwd",
            lambda m: m | {"files": [m["files"][0] | {"path": "/etc/passwd"}]},
            "not a plain relative path",
        ),
        damage("the manifest lists a file twice", lambda m: m | {"files": m["files"] * 2}, "'a.txt' is listed twice"),
        damage(
            "the manifest points to an attempt outside its folder",
            lambda m: m | {"attempt": "../../base-1/attempts/x"},
            "attempt: String should match pattern",
        ),
        damage(
            "the manifest tells of other inputs than at its commit",
            lambda m: m | {"inputs": {"data": {"uri": "x", "digest": "0" * 64}}},
            "altered after its commit .its seal does not follow from its fields",
        ),
        pytest.param(lambda m: m | {"schema_version": True}, "schema True", id="true"),
        pytest.param(lambda m: m | {"surprise": 1}, "surprise", id="unknown-key"),
        pytest.param(
            lambda m: m | {"files": [m["files"][0] | {"sha256": "0" * 64}]},
            "do not give its content digest",
            id="digest",
        ),
        pytest.param(lambda m: m | {"metrics": {"exact_match": 1.0}}, "its seal", id="metric"),
        pytest.param(lambda m: m | {"metrics": {"exact_match": float("nan")}}, "its seal", id="nan"),
        pytest.param(lambda m: {key: m[key] for key in m if key != "seal"}, "its seal", id="unsealed"),
        pytest.param(lambda m: m | {"schema_version": 1}, "its seal", id="older"),
        pytest.param(lambda m: [], "not a manifest", id="not-a-manifest"),
    ],
)
def test_an_altered_manifest_is_refused(store, commit, reads, edit, says):
    commit("data-1", {"a.txt": "one"})
    path = manifest_path(store, "data-1")
    path.write_text(json.dumps(edit(json.loads(path.read_text()))))
    with pytest.raises(ArtifactError, match=says) as refused:
        store.manifest("data-1")
    reads(refused.value)


def test_a_manifest_of_the_schema_before_the_seal_is_read(store, commit):
    manifest = commit("data-1", {"a.txt": "one"})
    path = manifest_path(store, "data-1")
    document = {key: value for key, value in json.loads(path.read_text()).items() if key != "seal"}
    path.write_text(json.dumps(document | {"schema_version": 1}))
    assert store.manifest("data-1") == manifest.model_copy(update={"schema_version": 1})


@pytest.mark.parametrize("there", [damage("another artifact's folder stands in its place", "data-2")])
def test_an_artifact_under_another_name_is_refused(store, commit, reads, there):
    commit("data-1", {"a.txt": "one"})
    root = Path(store.root.removeprefix("file://"))
    (root / "data-1").rename(root / there)
    with pytest.raises(ArtifactError, match="names 'data-1': it was moved or copied") as refused:
        store.manifest(there)
    reads(refused.value)


@pytest.mark.parametrize(
    "data",
    [
        damage("the manifest is empty", b""),
        damage("the manifest is not JSON", b'{"schema_version"'),
        damage("the manifest nests a million lists", b"[" * 10**6),
        b"\xff\xfe",
    ],
)
def test_what_is_no_manifest_is_refused(store, commit, reads, data):
    commit("data-1", {"a.txt": "one"})
    manifest_path(store, "data-1").write_bytes(data)
    with pytest.raises(ArtifactError, match="is not a manifest") as refused:
        store.manifest("data-1")
    reads(refused.value)


@pytest.mark.parametrize(
    "spoil",
    [
        damage("the manifest has a terabyte", lambda path: os.truncate(path, 2**40)),
        damage("the manifest is a link", move_and_link),
        make_pipe,
    ],
)
def test_a_manifest_that_cannot_be_read_at_once_is_refused(store, commit, reads, spoil):
    commit("data-1", {"a.txt": "one"})
    spoil(manifest_path(store, "data-1"))
    says = r"is not the file that was committed \(a link, a special file, or"
    with pytest.raises(ArtifactError, match=says) as refused:
        store.manifest("data-1")
    reads(refused.value)


@pytest.mark.parametrize("more", [damage("there is a file more than the manifest lists", "model/adapter_config.json")])
def test_a_file_that_the_manifest_does_not_list_is_refused(store, commit, reads, more):
    commit("base-1", {"model/config.json": "{}"})
    (folder_of(store, "base-1") / more).write_text("{}")
    with pytest.raises(ArtifactError, match=f"'{more}' was added") as refused, store.open_files("base-1"):
        pass
    reads(refused.value)


@pytest.mark.parametrize("level", [damage("a folder is a link to the same files", "files/sub"), "files", "."])
def test_a_folder_that_is_a_link_is_refused(store, commit, tmp_path, reads, level):
    commit("data-1", {"sub/a.txt": "one"})
    folder = (folder_of(store, "data-1").parent / level).resolve()
    folder.symlink_to(folder.rename(tmp_path / "elsewhere"))
    with pytest.raises(ArtifactError, match="is a link") as refused, store.open_files("data-1"):
        pass
    reads(refused.value)
    with pytest.raises(ArtifactError, match="sub/a.txt is missing or was altered"):
        store.read_bytes("data-1", "sub/a.txt")


def test_an_artifact_that_was_moved_to_another_disk_and_linked_is_read(store, commit, tmp_path):
    commit("data-1", {"sub/a.txt": "one"})
    folder = manifest_path(store, "data-1").parent
    folder.symlink_to(folder.rename(tmp_path / "another disk"))
    assert store.read_bytes("data-1", "sub/a.txt") == b"one"
    with store.open_files("data-1") as files:
        assert (files / "sub" / "a.txt").read_text() == "one"


def hard_link(artifact):
    artifact.with_name("backup").hardlink_to(next(artifact.rglob("a.txt")))


def second_attempt(artifact):
    other = artifact / "attempts" / "0123456789ab" / "files"
    other.mkdir(parents=True)
    (other / "a.txt").write_text("another try's")


@pytest.mark.parametrize(
    "add",
    [
        pytest.param(add, id=when, marks=scenario(given=PLANNED_WITH, when=when, then="it is read as it is"))
        for add, when in [
            (second_attempt, "another attempt lies beside the one that was committed"),
            (hard_link, "a backup links its files hard"),
        ]
    ],
)
def test_what_does_no_harm_is_no_damage(store, commit, add):
    commit("data-1", {"a.txt": "one"})
    add(Path(store.root.removeprefix("file://")) / "data-1")
    with store.open_files("data-1") as folder:
        assert (folder / "a.txt").read_text() == "one"


@scenario(
    given="files whose names are equal but for case or for their Unicode form",
    when="they are committed as one artifact",
    then="each is read back with its own bytes",
)
def test_names_that_look_alike_are_not_mixed_up(store, commit):
    names = {path: f"bytes of {path}" for path in ("Data.txt", "data.txt", "caf\u00e9.txt", "cafe\u0301.txt")}
    commit("alike-1", names)
    with store.open_files("alike-1") as folder:
        assert {path: (folder / path).read_text() for path in names} == names
    assert {path: store.read_bytes("alike-1", path).decode() for path in names} == names


def test_what_is_not_json_is_refused_as_such(store, commit):
    commit("data-1", {"a.json": "{"})
    with pytest.raises(ArtifactError, match="a.json is not JSON"):
        store.read_json("data-1", "a.json")


@pytest.mark.parametrize("name", ["back\\slash", os.fsdecode(b"caf\xe9")])
def test_a_name_that_no_manifest_can_hold_is_not_committed(store, provenance, name):
    with store.attempt("odd") as attempt:
        (attempt.files / name).write_text("x")
        with pytest.raises(ArtifactError, match="is no name for a file of an artifact"):
            attempt.commit(job="test", code="0", provenance=provenance)


def test_a_truncated_manifest_is_refused(store, commit):
    commit("data-1", {"a.txt": "one"})
    path = manifest_path(store, "data-1")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ArtifactError, match="damaged after its commit"):
        store.manifest("data-1")


def test_other_bytes_than_planned_are_refused(store, commit):
    commit("data-1", {"a.txt": "one"})
    refused = pytest.raises(ArtifactError, match="other bytes than this run was planned with")
    with refused, store.open_files("data-1", digest="0" * 64):
        pass


def test_a_missing_artifact_says_what_to_do(store):
    with pytest.raises(ArtifactError, match="does not exist: clear the task that makes it"), store.open_files("gone"):
        pass


@pytest.mark.remedy("is gone, with all that was written into it: clear this task")
def test_a_cleared_task_writes_anew_what_is_gone(store, provenance):
    record = {"job": "test", "code": "0", "provenance": provenance}
    with store.attempt("data-1") as attempt:
        shutil.rmtree(attempt.files)
        with pytest.raises(TryAgainError, match="is gone, with all that was written into it: clear this task"):
            attempt.commit(**record)
    with store.attempt("data-1") as attempt:
        assert attempt.commit(**record)[1]


def test_links_are_not_committed(store, provenance):
    with store.attempt("linked") as attempt:
        (attempt.files / "a").symlink_to("/etc/passwd")
        with pytest.raises(ArtifactError, match="link"):
            attempt.commit(job="test", code="0", provenance=provenance)
    assert store.manifest("linked") is None


def test_create_never_overwrites(store):
    assert store.create("claims/one", b"first")
    assert not store.create("claims/one", b"second")
    assert (Path(store.root.removeprefix("file://")) / "claims" / "one").read_bytes() == b"first"


@pytest.mark.parametrize("uri", ["plain", "file://", "/tmp/x", "file:///store/..", "file:///s/UP", "file:///s/a\0b"])
def test_a_uri_needs_store_and_name(uri):
    with pytest.raises(ConfigurationError, match="not an artifact URI"):
        split_uri(uri)


def test_an_existing_store_that_is_away_is_neither_empty_nor_made_anew(store, commit, provenance):
    """A folder that is renamed or not mounted must not look like artifacts that nobody made."""
    commit("data-1", {"a.txt": "one"})
    root = Path(store.root.removeprefix("file://"))
    existing, _ = Store.of(store.uri("data-1"))
    attempt = existing.attempt("data-2")
    root.rename(root.with_name("away"))
    for use in (
        lambda: existing.manifest("data-1"),
        lambda: existing.names(),
        lambda: existing.read_bytes("data-1", "a.txt"),
        lambda: existing.read_file("claims/one"),
        lambda: existing.write_spec("data-1", "{}"),
        lambda: existing.create("claims/one", b"first"),
        lambda: existing.attempt("data-3"),
        lambda: attempt.commit(job="test", code="0", provenance=provenance),
    ):
        with pytest.raises(TryAgainError, match="is not there|is gone"):
            use()
    assert not root.exists()
    root.with_name("away").rename(root)
    assert existing.names() == ["data-1"]
