"""Fixtures of the controller's tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from include.specs.base import Artifact
from tests.jobs.serving.canary.services import make_engines
from tests.jobs.serving.canary.world import World


@pytest.fixture
def world(tmp_path: Path, request: pytest.FixtureRequest) -> World:
    """A world with one Triton; `parametrize("world", seeds, indirect=True)` draws its traffic anew."""
    return World(tmp_path, seed=getattr(request, "param", 0))


@pytest.fixture(scope="session")
def engines(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Artifact]:
    """Engines of two versions; no test may change them."""
    return make_engines(tmp_path_factory.mktemp("engines"))
