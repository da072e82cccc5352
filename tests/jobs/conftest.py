"""Run real jobs as real processes on small inputs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from include.artifacts.manifest import Manifest, Provenance
from include.artifacts.naming import artifact_name
from include.artifacts.store import Store
from include.code_identity import code_identity
from include.specs import job_module, spec_class
from include.specs.base import Artifact, identity

OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TORCHDYNAMO_DISABLE": "1",
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "RAY_USAGE_STATS_ENABLED": "0",
    "GX_ANALYTICS_ENABLED": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
}

# Before anything imports torch: a fork of a process in which several of its threads have computed hangs.
os.environ["OMP_NUM_THREADS"] = "1"


@dataclass(frozen=True)
class Outcome:
    """What a job's process left: exit code, output, and, where it committed, manifest and files."""

    code: int
    stdout: str
    stderr: str
    manifest: Manifest | None
    folder: Path | None
    uri: str

    @property
    def error(self) -> str:
        """The last line of stderr: the sentence for the user."""
        return self.stderr.strip().splitlines()[-1] if self.stderr.strip() else ""

    @property
    def artifact(self) -> Artifact:
        assert self.manifest is not None
        return Artifact(uri=self.uri, digest=self.manifest.content_digest)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(f"file://{tmp_path}/store")


@pytest.fixture
def make_artifact(store: Store) -> Callable[..., Artifact]:
    """Commit files given as {path: text or bytes}, or copied from a folder."""

    def make(name: str, files: dict[str, bytes | str] | None = None, folder: Path | None = None) -> Artifact:
        now = datetime.now(UTC)
        with store.attempt(name) as attempt:
            if folder is not None:
                shutil.copytree(folder, attempt.files, dirs_exist_ok=True)
            for path, content in (files or {}).items():
                target = attempt.files / path
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(content.encode() if isinstance(content, str) else content)
            manifest, _ = attempt.commit(
                job="test",
                code="0",
                provenance=Provenance(
                    started=now, finished=now, wall_seconds=0, cpu_seconds=0, peak_rss_bytes=0, host="test", python="3"
                ),
            )
        return Artifact(uri=store.uri(name), digest=manifest.content_digest)

    return make


@pytest.fixture
def write_spec(store: Store) -> Callable[..., tuple[str, str]]:
    """Write a job's spec; returns its URI and the output's name."""

    def write(job: str, config: dict[str, Any], inputs: dict[str, Artifact] | None = None) -> tuple[str, str]:
        cls = spec_class(job)
        code = code_identity(job, cls.environment)
        draft = cls.model_validate(
            {
                "job": job,
                "config": config,
                "inputs": {key: value.model_dump() for key, value in (inputs or {}).items()},
                "output": {"store": store.root, "name": "draft", "code": code},
            }
        )
        name = artifact_name(
            job, code=code, identity={"config": identity(draft.config), "inputs": identity(draft.inputs)}
        )
        spec = draft.model_copy(update={"output": draft.output.model_copy(update={"name": name})})
        return store.write_spec(name, spec.model_dump_json(indent=1)), name

    return write


@pytest.fixture
def run_job(store: Store, write_spec: Callable[..., tuple[str, str]]) -> Callable[..., Outcome]:
    """Run a job to its end and check its exit code."""

    def run(
        job: str,
        config: dict[str, Any],
        inputs: dict[str, Artifact] | None = None,
        expect: int = 0,
        env: dict[str, str] | None = None,
    ) -> Outcome:
        uri, name = write_spec(job, config, inputs)
        done = subprocess.run(
            [sys.executable, "-m", job_module(job), "--spec", uri],
            capture_output=True,
            text=True,
            env={**os.environ, **OFFLINE, **(env or {})},
            timeout=600,
        )
        assert done.returncode == expect, f"exit {done.returncode}, expected {expect}\n{done.stdout}\n{done.stderr}"
        manifest = store.manifest(name)
        folder = (
            Path(store.root.removeprefix("file://")) / name / "attempts" / manifest.attempt / "files"
            if manifest
            else None
        )
        return Outcome(done.returncode, done.stdout, done.stderr, manifest, folder, store.uri(name))

    return run
