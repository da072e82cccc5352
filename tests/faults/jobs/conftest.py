"""The jobs of the fault pages, as real processes, and what their user reads."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from include.artifacts.store import Store
from include.gates import Verdict
from include.gates.data_quality import data_quality
from include.specs.base import Artifact
from tests.faults.jobs.training import larger_tokenizer, long_rows, odd, poisoned, small_disk  # noqa: F401
from tests.jobs.check.test_check import config as config_of
from tests.jobs.conftest import (  # noqa: F401
    OFFLINE,
    Outcome,
    chat_template,
    database,
    database_file,
    empty_database,
    make_artifact,
    run_job,
    write_spec,
)
from tests.jobs.finetune.conftest import (  # noqa: F401
    automodel,
    base,
    base_folder,
    config,
    data,
    memory_limit,
    node,
    pair,
    start,
)


@pytest.fixture
def message_of(tmp_path: Path, reads: Callable[[object], None]) -> Callable[[Outcome], str]:
    """Return the message with which a job ended, and keep it for docs/faults.md."""

    def read(outcome: Outcome) -> str:
        message = outcome.error.removeprefix("error: ").replace(f"{tmp_path}/", "")
        reads(message)
        return message

    return read


@pytest.fixture
def ingest(run_job: Callable[..., Outcome]) -> Callable[..., Outcome]:  # noqa: F811
    """Ingest a path at once."""
    return lambda source: run_job("ingest", {"source": str(source), "settle_seconds": 0})


@pytest.fixture
def ingest_of_another_user(
    tmp_path: Path,
    store: Store,
    write_spec: Callable[..., tuple[str, str]],  # noqa: F811
) -> Callable[[bytes], Outcome]:
    """Ingest a file that another user owns and nobody else may read: root without its right to read everything."""

    def run(content: bytes) -> Outcome:
        source = tmp_path / "data.jsonl"
        source.write_bytes(content)
        without: list[str] = []
        if os.geteuid() == 0:
            os.chown(source, 65534, 65534)
            rights = "-dac_override,-dac_read_search"
            without = ["setpriv", f"--bounding-set={rights}", f"--inh-caps={rights}"]
        source.chmod(0o600 if without else 0)
        uri, name = write_spec("ingest", {"source": str(source), "settle_seconds": 0})
        command = [*without, sys.executable, "-m", "jobs.ingest", "--spec", uri]
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **OFFLINE}, timeout=60)
        return Outcome(done.returncode, done.stdout, done.stderr, store.manifest(name), None, store.uri(name))

    return run


@pytest.fixture(scope="session")
def once() -> dict[str, Any]:
    """What several scenarios share, by name: one process shows them all."""
    return {}


@pytest.fixture
def curated(
    once: dict[str, Any],
    make_artifact: Callable[..., Artifact],  # noqa: F811
    run_job: Callable[..., Outcome],  # noqa: F811
) -> Callable[..., Outcome]:
    """Curate files, once for all scenarios that give the same name."""

    def run(
        name: str,
        files: dict[str, bytes],
        settings: dict[str, Any] | None = None,
        held_out: dict[str, bytes] | None = None,
    ) -> Outcome:
        if name not in once:
            inputs = {"data": make_artifact("data", files)}
            if held_out is not None:
                inputs["heldout"] = make_artifact("heldout", held_out)
            once[name] = run_job("curate", settings or {}, inputs)
        return once[name]

    return run


@pytest.fixture
def checked(
    once: dict[str, Any],
    run_job: Callable[..., Outcome],  # noqa: F811
    base: Artifact,  # noqa: F811
) -> Callable[..., Verdict]:
    """The gate's verdict over a curated data set, once for all scenarios that give the same name."""

    def run(name: str, curated: Artifact, suite: str) -> Verdict:
        key = f"check of {name}"
        if key not in once:
            config = {**config_of(suite), "max_tokens": 128}
            folder = run_job("check", config, {"curated": curated, "base": base}).folder
            once[key] = data_quality(json.loads((folder / "result.json").read_text(encoding="utf-8")))
        return once[key]

    return run
