"""Whatever a manifest holds comes back as it was, and whatever it is not is refused."""

from __future__ import annotations

import json
import os
import tempfile
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from include.artifacts.manifest import FileEntry, Manifest, Provenance, safe_name
from include.artifacts.naming import content_digest
from include.artifacts.store import Attempt, Store
from include.errors import ArtifactError

texts = st.text(st.characters(codec="utf-8"), max_size=12)
finite = st.floats(allow_nan=False, allow_infinity=False)
hexes = st.text("0123456789abcdef", min_size=64, max_size=64)
times = st.datetimes(timezones=st.just(UTC))
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | finite | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
pieces = st.text(st.characters(codec="utf-8", exclude_characters="/\\\0"), min_size=1, max_size=6)
paths = st.lists(pieces.filter(lambda piece: piece not in (".", "..")), min_size=1, max_size=3).map("/".join)


@st.composite
def manifests(draw: st.DrawFn) -> Manifest:
    listed = draw(st.lists(paths, max_size=4, unique=True))
    files = tuple(FileEntry(path=path, size=draw(st.integers(0, 2**50)), sha256=draw(hexes)) for path in listed)
    cost = {key: draw(st.floats(0, 1e9)) for key in ("wall_seconds", "cpu_seconds")}
    provenance = Provenance(
        started=draw(times), finished=draw(times), peak_rss_bytes=1, host=draw(texts), python=draw(texts), **cost
    )
    uris = st.fixed_dictionaries({"uri": texts, "digest": hexes})
    return Manifest(
        name=draw(st.from_regex(r"[a-z0-9][a-z0-9_-]{0,20}", fullmatch=True)),
        job=draw(texts),
        attempt=draw(st.from_regex(r"[0-9a-zA-Z-]{1,64}", fullmatch=True)),
        files=files,
        content_digest=content_digest(files),
        inputs=draw(st.dictionaries(texts, uris, max_size=2)),
        config=draw(st.dictionaries(texts, json_values, max_size=3)),
        code=draw(texts),
        metrics=draw(st.dictionaries(texts, st.none() | st.booleans() | st.integers() | finite | texts, max_size=3)),
        provenance=provenance,
    )


@given(manifests())
def test_every_manifest_comes_back_as_it_was(manifest: Manifest) -> None:
    assert Manifest.parse(manifest.encode(), where="here") == manifest


@given(manifests(), st.data())
@settings(max_examples=200)
def test_a_changed_byte_is_refused_or_says_the_same(manifest: Manifest, data: st.DataObject) -> None:
    encoded = bytearray(manifest.encode())
    position = data.draw(st.integers(0, len(encoded) - 1))
    encoded[position] = data.draw(st.integers(0, 255).filter(lambda byte: byte != encoded[position]))
    try:
        found = Manifest.parse(bytes(encoded), where="here")
    except ArtifactError:
        return
    assert found == manifest


@given(st.binary(max_size=200) | json_values.map(lambda value: json.dumps(value).encode()))
def test_what_is_no_manifest_is_refused(data: bytes) -> None:
    with pytest.raises(ArtifactError):
        Manifest.parse(data, where="here")


hostile = st.lists(st.sampled_from(["..", ".", "/", "//", "\\", "\0", "a", "b c", "~", "\n"]) | pieces, max_size=6)


@given(hostile.map("".join))
def test_no_path_leads_out_of_the_folder(path: str) -> None:
    try:
        FileEntry(path=path, size=0, sha256="0" * 64)
    except ValidationError:
        return
    assert os.path.normpath(f"/store/files/{path}") == f"/store/files/{path}"
    assert "\0" not in path


@given(hostile.map("".join))
def test_no_name_leads_out_of_the_store(name: str) -> None:
    try:
        safe_name(name)
    except ValueError:
        return
    assert os.path.normpath(f"/store/{name}/manifest.json") == f"/store/{name}/manifest.json"
    assert "/" not in name


@pytest.mark.parametrize("attempt", ["", "../x", "a/b", "a.b", "x\n", "x" * 65, "é"])
def test_an_attempt_is_one_plain_word(attempt: str) -> None:
    with pytest.raises(ValidationError):
        Manifest(
            name="x", job="x", attempt=attempt, files=(), content_digest="0" * 64, code="", provenance=_provenance()
        )  # fmt: skip


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_metric_that_is_no_number_is_none(value: float) -> None:
    manifest = Manifest(
        name="x", job="x", attempt="0", files=(), content_digest=content_digest(()), code="",
        metrics={"loss": value}, provenance=_provenance(),
    )  # fmt: skip
    assert manifest.metrics == {"loss": None}
    assert Manifest.parse(manifest.encode(), where="here") == manifest


def _provenance() -> Provenance:
    now = datetime.now(UTC)
    return Provenance(started=now, finished=now, wall_seconds=0, cpu_seconds=0, peak_rss_bytes=0, host="", python="")


class Writer:
    """A writer, of two that make the same artifact a step at a time."""

    STEPS = ("open", "write", "more", "commit", "leave")

    def __init__(self, store: Store, text: str) -> None:
        self._store, self._text, self._at = store, text, 0
        self._attempt: Attempt | None = None
        self.outcome: tuple[Manifest, bool] | None = None

    def step(self) -> None:
        attempt: Any = self._attempt
        match self.STEPS[self._at]:
            case "open":
                self._attempt = self._store.attempt("race").__enter__()
            case "write":
                (attempt.files / "who").write_text(self._text)
            case "more":
                (attempt.files / "same").write_text("same")
            case "commit":
                self.outcome = attempt.commit(job="test", code="0", provenance=_provenance())
            case "leave":
                attempt.__exit__(None, None, None)
        self._at += 1


@given(st.permutations([0] * 5 + [1] * 5), st.tuples(st.integers(0, 5), st.integers(0, 5)))
@settings(max_examples=60)
def test_of_two_writers_one_commits_however_their_steps_mix_and_wherever_they_die(
    order: list[int], last: tuple[int, int]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = Store(f"file://{folder}/store")
        writers = [Writer(store, "first"), Writer(store, "second")]
        done = [0, 0]
        for number in order:
            if done[number] < last[number]:
                writers[number].step()
                done[number] += 1
        outcomes = [writer.outcome for writer in writers if writer.outcome is not None]
        if not outcomes:
            assert store.manifest("race") is None
            return
        assert sum(ours for _, ours in outcomes) == 1
        standing = store.manifest("race")
        assert all(manifest == standing for manifest, _ in outcomes)
        (winner,) = (writer for writer in writers if writer.outcome is not None and writer.outcome[1])
        assert store.read_bytes("race", "who").decode() == winner._text
        with store.open_files("race") as files:
            assert {path.name for path in files.iterdir()} == {"who", "same"}
