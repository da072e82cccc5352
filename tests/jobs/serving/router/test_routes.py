"""The durable routes on disk."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from include.errors import ConfigurationError, DataError
from jobs.serving.router.routes import Route, RouteFile, lock_folder

ONE = {"kubectl": Route(generation=1, champion="kubectl-v1")}
TWO = {"kubectl": Route(generation=2, champion="kubectl-v2", canary="kubectl-v3", weight=0.25, holder="me")}


def test_what_was_written_is_read(tmp_path: Path) -> None:
    file = RouteFile(tmp_path)
    assert file.read() == ({}, None)
    file.write(ONE)
    file.write(TWO)
    assert file.read() == (TWO, file.path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["router.json", "router.json.previous"]


@pytest.mark.parametrize("damage", [b"", b"{", b"\0" * 100, b'{"format": 2, "targets": {}}', b'{"targets": 5}'])
def test_a_damaged_file_gives_way_to_the_one_before(tmp_path: Path, damage: bytes) -> None:
    file = RouteFile(tmp_path)
    file.write(ONE)
    file.write(TWO)
    file.path.write_bytes(damage)
    assert file.read() == (ONE, file.previous)
    file.write(TWO)
    assert file.read() == (TWO, file.path)
    file.path.write_bytes(damage)
    assert file.read() == (ONE, file.previous), "a damaged file is never kept as the one before"
    file.previous.write_bytes(damage)
    with pytest.raises(DataError, match=r"router\.json .* or .*router\.json\.previous .*bring one of them back"):
        file.read()


@given(data=st.data())
def test_whatever_bytes_are_found_the_routes_are_whole_or_an_error_names_the_file(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = RouteFile(Path(folder))
        file.write(ONE)
        file.write(TWO)
        sound = file.path.read_bytes()
        cut = st.integers(0, len(sound) - 1).map(lambda length: sound[:length])
        flipped = st.tuples(st.integers(0, len(sound) - 1), st.integers(1, 255)).map(
            lambda flip: sound[: flip[0]] + bytes([sound[flip[0]] ^ flip[1]]) + sound[flip[0] + 1 :]
        )
        damages = cut | flipped | st.binary(max_size=200)
        file.path.write_bytes(data.draw(damages))
        routes, source = file.read()
        assert (routes, source) == (ONE, file.previous) or source == file.path
        file.previous.write_bytes(data.draw(damages))
        try:
            assert file.read()[1] in (file.path, file.previous)
        except DataError as error:
            assert str(file.path) in str(error) and "bring one of them back" in str(error)


def test_a_write_that_fails_leaves_the_old_routes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = RouteFile(tmp_path)
    file.write(ONE)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        file.write(TWO)
    assert file.read() == (ONE, file.path)


def test_releases_of_the_longest_model_names_have_routes(tmp_path: Path) -> None:
    name = "m" * 128
    routes = {name: Route(generation=1, champion=f"{name}-v12345-0123abcd", canary=f"{name}-v12346-0123abcd")}
    RouteFile(tmp_path).write(routes)
    assert RouteFile(tmp_path).read()[0] == routes
    with pytest.raises(ValidationError):
        Route(generation=1, champion="m" * 161)


def test_one_router_a_folder(tmp_path: Path) -> None:
    lock = lock_folder(tmp_path)
    with pytest.raises(ConfigurationError, match="another router keeps its routes"):
        lock_folder(tmp_path)
    os.close(lock)
    os.close(lock_folder(tmp_path))
