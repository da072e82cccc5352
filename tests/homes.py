"""Homes of Anemone that a test has for itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from include.home import home as project_home
from include.laptop.components import down
from include.laptop.home import make_home
from tests.ports import free_home_port


@contextmanager
def own_home(folder: Path, **environment: str) -> Iterator[Path]:
    """A home below `folder` with ports of its own, in which only the Python environments are shared.

    What runs there at the end is stopped. `environment` is set meanwhile.
    """
    environments = project_home() / "venvs"
    path = folder / "anemone"
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "ANEMONE_PORT": str(free_home_port()),
            "ANEMONE_HOME": str(path),
            **environment,
        }.items():
            patch.setenv(name, value)
        make_home()
        (path / "venvs").symlink_to(environments)
        try:
            yield path
        finally:
            down()
