"""A store with a history: artifacts of any age, a real MLflow, and the records of a canary controller."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from include.artifacts.manifest import InputEntry, Provenance
from include.artifacts.store import Store
from include.artifacts.uses import Run, note_uses
from include.code_identity import code_identity
from include.home import PROJECT
from include.release.rollouts import LiveRelease
from include.retention import Plan
from include.specs.base import Artifact
from include.specs.retention import Spec
from jobs.common.registry.tags import ARTIFACT_TAG
from jobs.serving.canary.state.records import Records, TargetRecord
from tests.jobs.conftest import OFFLINE

MODEL = "kubectl"


@dataclass(frozen=True)
class Done:
    """How the job ended: exit code, its last sentence, everything it printed, its artifact's name."""

    code: int
    error: str
    output: str
    name: str


class World:
    """What the job `retention` finds. Ages are in days."""

    def __init__(self, folder: Path, database: Path) -> None:
        self.folder = folder
        self.store = Store(f"file://{folder}/store")
        self.path = folder / "store"
        shutil.copy(database, folder / "mlflow.db")
        self.mlflow = f"sqlite:///{folder}/mlflow.db"
        self.client = MlflowClient(self.mlflow, self.mlflow)
        self.client.create_registered_model(MODEL)
        self.config: dict[str, Any] = {
            "controller_url": "http://127.0.0.1:9",
            "token_file": str(folder / "token"),
            "records": str(folder / "canary"),
        }
        (folder / "token").write_text("planted-secret-token")

    def make(
        self, name: str, *, age: float = 60, inputs: Sequence[str] = (), job: str = "merge", size: int = 10
    ) -> None:
        """Commit an artifact, as if that had been `age` days ago."""
        then = datetime.now(UTC) - timedelta(days=age)
        cost = {"wall_seconds": 0, "cpu_seconds": 0, "peak_rss_bytes": 0}
        made_from = {}
        for other in inputs:
            manifest = self.store.manifest(other)
            assert manifest is not None
            made_from[other.replace("-", "_")] = InputEntry(uri=self.store.uri(other), digest=manifest.content_digest)
        with self.store.attempt(name) as attempt:
            (attempt.files / "data").write_bytes(name.encode().ljust(size))
            (attempt.files / "more").mkdir()
            (attempt.files / "more" / "data").write_bytes(b"more")
            attempt.events.touch()
            attempt.commit(
                job=job,
                inputs=made_from,
                config={"model": MODEL} if job == "register" else {},
                code="0",
                provenance=Provenance(started=then, finished=then, host="test", python="3", **cost),
            )
        self.age(name, age)

    def age(self, path: str, days: float) -> None:
        """Let a file, or a folder with all that is in it, have been written `days` ago."""
        moment = (datetime.now(UTC) - timedelta(days=days)).timestamp()
        top = self.path / path
        for each in [top, *top.rglob("*")]:
            os.utime(each, (moment, moment))

    def register(self, *names: str) -> str:
        """One version made of these artifacts; returns its number."""
        tags = {ARTIFACT_TAG: self.store.uri(names[0])}
        tags |= {f"anemone.input_uri.{name}": self.store.uri(name) for name in names}
        return str(self.client.create_model_version(MODEL, source=self.store.uri(names[0]), tags=tags).version)

    def go_live(self, *engines: str) -> None:
        """The first is live, the others were live before, newest first."""
        since = datetime.now(UTC)
        releases = [
            LiveRelease.model_validate(
                {
                    "name": f"{MODEL}-v{number}",
                    "since": since,
                    "release": {
                        "model": MODEL,
                        "version": str(number + 1),
                        "engine": {"uri": self.store.uri(engine), "digest": "0" * 64},
                    },
                }
            )
            for number, engine in enumerate(engines)
        ]
        records = Records(self.folder / "canary")
        record = TargetRecord(target=MODEL, champion=releases[0], previous=tuple(releases[1:]))
        asyncio.run(records.save_target(record))
        records.close()

    def noted_by(self, run: Run, *names: str, age: float = 0) -> None:
        note_uses(self.store, run, names)
        for name in names:
            self.age(f"uses/{name}/{run.key}", age)

    def names(self) -> set[str]:
        """The artifacts, without those of the job `retention` itself; each of them is verified whole."""
        found = {name for name in self.store.names() if not name.startswith("retention-")}
        for name in found:
            with self.store.open_files(name):
                pass
        return found

    def start(
        self, plan: str | None = None, *, mlflow: str | None = None, **config: Any
    ) -> tuple[subprocess.Popen, str]:
        """The job as a process; returns it with its artifact's name."""
        inputs = {}
        if plan is not None:
            manifest = self.store.manifest(plan)
            assert manifest is not None
            inputs["plan"] = Artifact(uri=self.store.uri(plan), digest=manifest.content_digest)
        name = f"retention-{uuid.uuid4().hex[:20]}"
        output = {"store": self.store.root, "name": name, "code": code_identity("retention", "jobs")}
        spec = Spec.model_validate({"config": {**self.config, **config}, "inputs": inputs, "output": output})
        uri = self.store.write_spec(name, spec.model_dump_json())
        process = subprocess.Popen(
            [sys.executable, "-m", "jobs.retention", "--spec", uri],
            cwd=PROJECT,
            env={**os.environ, **OFFLINE, "MLFLOW_TRACKING_URI": mlflow or self.mlflow},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        return process, name

    def run(self, plan: str | None = None, *, expect: int = 0, **config: Any) -> Done:
        process, name = self.start(plan, **config)
        out, err = process.communicate(timeout=300)
        assert process.returncode == expect, out + err
        last = err.strip().splitlines()[-1] if err.strip() else ""
        return Done(process.returncode, last.removeprefix("error: "), out + err, name)

    def plan(self, **config: Any) -> tuple[str, Plan]:
        name = self.run(**config).name
        return name, Plan.model_validate(self.store.read_json(name, "plan.json"))

    def sweep(self, **config: Any) -> Plan:
        """Make a plan and carry it out; return what was deleted."""
        done = self.run(self.plan(**config)[0], **config)
        return Plan.model_validate(self.store.read_json(done.name, "swept.json"))

    def spared(self, name: str) -> list[dict[str, str]]:
        return json.loads(self.store.read_bytes(name, "spared.json"))


@pytest.fixture
def world(tmp_path: Path, empty_database: Path) -> World:
    return World(tmp_path, empty_database)
