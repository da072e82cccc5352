"""Fixtures for every room."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from include.artifacts.manifest import Manifest, Provenance
from include.artifacts.store import Store


@pytest.fixture
def provenance() -> Provenance:
    now = datetime.now(UTC)
    return Provenance(
        started=now, finished=now, wall_seconds=0, cpu_seconds=0, peak_rss_bytes=0, host="test", python="3"
    )


@pytest.fixture
def store(tmp_path: Path) -> Store:
    (tmp_path / "store").mkdir()
    return Store(f"file://{tmp_path}/store")


@pytest.fixture
def commit(store: Store, provenance: Provenance) -> Callable[..., Manifest]:
    """Commit an artifact from {path: text or bytes}."""

    def make(name: str, files: dict[str, bytes | str], **record: object) -> Manifest:
        with store.attempt(name) as attempt:
            for path, content in files.items():
                target = attempt.files / path
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(content.encode() if isinstance(content, str) else content)
            manifest, _ = attempt.commit(**{"job": "test", "code": "0", "provenance": provenance, **record})
        return manifest

    return make
