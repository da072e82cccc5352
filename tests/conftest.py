"""Fixtures for every room."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from include.artifacts.manifest import Manifest, Provenance
from include.artifacts.store import Store
from tests.s3 import server

pytest_plugins = ["tests.faults.plugin"]

# A busy machine takes its time for an example, and for drawing it; that is no fault of the code.
settings.register_profile("anemone", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("anemone")


@pytest.fixture
def provenance() -> Provenance:
    now = datetime.now(UTC)
    return Provenance(
        started=now, finished=now, wall_seconds=0, cpu_seconds=0, peak_rss_bytes=0, host="test", python="3"
    )


@pytest.fixture
def store(tmp_path: Path) -> Store:
    (tmp_path / "store").mkdir(exist_ok=True)  # a test may have mounted a disk there
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


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """The address of a real S3 server."""
    with server.running() as url:
        yield url


@pytest.fixture
def s3_bucket(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A new bucket, and the standard variables set so that this process may use it."""
    identity = {"AWS_ACCESS_KEY_ID": server.KEY, "AWS_SECRET_ACCESS_KEY": server.SECRET}
    place = {"AWS_ENDPOINT_URL_S3": s3_server, "AWS_DEFAULT_REGION": server.REGION}
    # Nothing is to be asked of a cloud's metadata service, or read from a home folder.
    nowhere = {"AWS_EC2_METADATA_DISABLED": "true", "AWS_CONFIG_FILE": "/dev/null"}
    for name, value in {**identity, **place, **nowhere, "AWS_SHARED_CREDENTIALS_FILE": "/dev/null"}.items():
        monkeypatch.setenv(name, value)
    from include.artifacts.s3 import Access

    bucket = f"anemone-{uuid.uuid4().hex[:12]}"
    Access().connect().create_bucket(Bucket=bucket, CreateBucketConfiguration={"LocationConstraint": server.REGION})
    return bucket


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write the golden files anew, for review by git diff")
