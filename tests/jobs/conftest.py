"""Run real jobs as real processes on small inputs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from include.artifacts.manifest import Manifest
from include.artifacts.naming import artifact_name
from include.artifacts.store import Store
from include.code_identity import code_identity
from include.errors import AnemoneError, ExitCode
from include.specs import job_module, spec_class
from include.specs.base import Artifact, identity
from jobs.common.runtime import execute, load_spec
from tests.jobs.models import TEMPLATE

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


@pytest.fixture(scope="session")
def chat_template() -> str:
    return TEMPLATE


@pytest.fixture
def make_artifact(store: Store, commit: Callable[..., Manifest]) -> Callable[..., Artifact]:
    """Commit files given as {path: text or bytes}, or copied from a folder."""

    def make(
        name: str, files: dict[str, bytes | str] | None = None, folder: Path | None = None, **record: Any
    ) -> Artifact:
        found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in _files(folder)} if folder else {}
        manifest = commit(name, {**found, **(files or {})}, **record)
        return Artifact(uri=store.uri(name), digest=manifest.content_digest)

    return make


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


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
        return outcome(done.returncode, done.stdout, done.stderr, store, name)

    return run


def outcome(code: int, stdout: str, stderr: str, store: Store, name: str) -> Outcome:
    manifest = store.manifest(name)
    return Outcome(code, stdout, stderr, manifest, files_of(store, manifest) if manifest else None, store.uri(name))


def files_of(store: Store, manifest: Manifest) -> Path:
    """The folder of an artifact's files in a local store."""
    return Path(store.root.removeprefix("file://")) / manifest.name / "attempts" / manifest.attempt / "files"


@pytest.fixture
def run_here(store: Store, write_spec: Callable[..., tuple[str, str]]) -> Callable[..., Path]:
    """Run a job in this process, which pays for its imports once; returns the folder of its files.

    What the job raises is raised, and has committed nothing.
    """

    def run(job: str, config: dict[str, Any], inputs: dict[str, Artifact] | None = None) -> Path:
        uri, name = write_spec(job, config, inputs)
        try:
            execute(load_spec(job, uri), import_module(f"{job_module(job)}.__main__").run)
        except Exception:
            assert store.manifest(name) is None
            raise
        manifest = store.manifest(name)
        assert manifest is not None
        return files_of(store, manifest)

    return run


@pytest.fixture
def refused(run_here: Callable[..., Path], reads: Callable[[object], None], tmp_path: Path) -> Callable[..., str]:
    """Run a job in this process, which must end with an exit code; returns its message, kept for docs/faults.md."""

    def run(
        job: str,
        config: dict[str, Any],
        inputs: dict[str, Artifact] | None = None,
        expect: int = ExitCode.BAD_DATA,
    ) -> str:
        with pytest.raises(AnemoneError) as caught:
            run_here(job, config, inputs)
        assert caught.value.exit_code == expect, caught.value
        message = str(caught.value).replace(f"{tmp_path}/", "")
        reads(message)
        return message

    return run


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite file with MLflow's tables: making them takes seconds, a copy none."""
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def database_file(empty_database: Path, tmp_path: Path) -> Path:
    """A SQLite file with MLflow's tables, of the test's own."""
    return Path(shutil.copy(empty_database, tmp_path / "mlflow.db"))


@pytest.fixture
def database(database_file: Path) -> str:
    """The address of that file, as MLflow takes it."""
    return f"sqlite:///{database_file}"
