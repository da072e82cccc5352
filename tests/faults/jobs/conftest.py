"""The jobs of the fault pages, as real processes, and what their user reads."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from include.artifacts.manifest import Manifest
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
def told(tmp_path: Path, reads: Callable[[str], None]) -> Callable[[Outcome], str]:
    """The sentence with which a job ended, kept for the published list."""

    def tell(outcome: Outcome) -> str:
        sentence = outcome.error.removeprefix("error: ").replace(f"{tmp_path}/", "")
        reads(sentence)
        return sentence

    return tell


@pytest.fixture
def ingest(run_job: Callable[..., Outcome]) -> Callable[..., Outcome]:  # noqa: F811
    """Ingest a path at once, or with other settings."""

    def run(source: Path, *, expect: int = 0, **settings: Any) -> Outcome:
        return run_job("ingest", {"source": str(source), "settle_seconds": 0, **settings}, expect=expect)

    return run


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


@dataclass
class Running:
    """A job's process in the midst of its work."""

    process: subprocess.Popen[str]
    store: Store
    name: str
    error: str = ""

    def wait_for(self, event: str) -> None:
        """Until it prints a line that starts with `event`."""
        assert self.process.stdout is not None
        assert any(line.startswith(event) for line in self.process.stdout), f"ended without {event}"

    def wait(self) -> int:
        """Its exit code; `error` then holds its last sentence."""
        _, stderr = self.process.communicate(timeout=300)
        self.error = stderr.strip().splitlines()[-1] if stderr.strip() else ""
        return self.process.returncode

    @property
    def manifest(self) -> Manifest | None:
        return self.store.manifest(self.name)


@pytest.fixture
def ingesting(store: Store, write_spec: Callable[..., tuple[str, str]]) -> Iterator[Callable[[Path], Running]]:  # noqa: F811
    """Start to ingest a path."""
    started: list[Running] = []

    def begin(source: Path) -> Running:
        uri, name = write_spec("ingest", {"source": str(source), "settle_seconds": 0})
        process = subprocess.Popen(
            [sys.executable, "-m", "jobs.ingest", "--spec", uri],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **OFFLINE},
        )
        started.append(Running(process, store, name))
        return started[-1]

    yield begin
    for job in started:
        job.process.kill()
        job.process.communicate()


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
