"""A home of its own for each module: its own port, store, inbox and Airflow; only the environments are shared."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from include.home import home as project_home
from include.laptop.components import down
from include.laptop.home import make_home
from tests.ports import free_home_port


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    environments = project_home() / "venvs"
    path = tmp_path_factory.mktemp("home") / "anemone"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ANEMONE_PORT", str(free_home_port()))
        patch.setenv("ANEMONE_HOME", str(path))
        make_home()
        (path / "venvs").symlink_to(environments)
        yield path
        down()
