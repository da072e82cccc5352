"""A home of its own for each module: its own port, store, inbox and Airflow; only the environments are shared."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from include.laptop.components import down
from include.laptop.home import home as project_home
from include.laptop.home import make_home


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    environments = project_home() / "venvs"
    path = tmp_path_factory.mktemp("home") / "anemone"
    with socket.socket() as free, pytest.MonkeyPatch.context() as patch:
        free.bind(("127.0.0.1", 0))
        patch.setenv("ANEMONE_PORT", str(free.getsockname()[1]))
        free.close()
        patch.setenv("ANEMONE_HOME", str(path))
        make_home()
        (path / "venvs").symlink_to(environments)
        yield path
        down()
