"""Runs told by real artifacts (see `world.py`)."""

from __future__ import annotations

from pathlib import Path

import pytest

from include.artifacts.store import Store
from include.specs.report import Spec
from tests.jobs.report.world import World, promoted_release


@pytest.fixture
def store(tmp_path: Path) -> Store:
    (tmp_path / "store").mkdir(exist_ok=True)
    return Store(f"file://{tmp_path}/store")


@pytest.fixture
def world(store: Store) -> World:
    return World(store)


@pytest.fixture
def release(store: Store, tmp_path: Path) -> tuple[World, Spec]:
    return promoted_release(store, tmp_path)


@pytest.fixture
def promoted(release: tuple[World, Spec]) -> Spec:
    return release[1]
