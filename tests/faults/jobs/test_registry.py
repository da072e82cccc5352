"""Registrations that are killed, that meet each other, and whose MLflow is away."""

# ruff: noqa: F811 (pytest's fixtures, imported by name)
from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from include.artifacts.store import Store
from include.specs.base import Artifact
from tests.faults.jobs.registry_server import MlflowServer
from tests.faults.scenario import scenario
from tests.jobs.conftest import OFFLINE, Outcome
from tests.jobs.register.test_register import CONFIG, commit_stage, stages  # noqa: F401


@pytest.fixture(scope="module")
def server(empty_database: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    folder = tmp_path_factory.mktemp("server")
    shutil.copy(empty_database, folder / "mlflow.db")
    server = MlflowServer(folder)
    try:
        server.start()
        yield server
    finally:
        server.kill()


@pytest.fixture(params=["file", "server"])
def registry(request: pytest.FixtureRequest) -> str:
    """MLflow's address: a SQLite file, and a server."""
    if request.param == "file":
        return request.getfixturevalue("database")
    return request.getfixturevalue("server").url


@pytest.fixture
def register(
    run_job: Callable[..., Outcome],
    stages: dict[str, Artifact],
) -> Callable[..., Outcome]:
    """Register the candidate of one run as version of `kubectl`, or of another name."""

    def run(registry: str, model: str = "kubectl", expect: int = 0, **env: str) -> Outcome:
        config = {**CONFIG, "model": model}
        return run_job("register", config, stages, expect=expect, env={"MLFLOW_TRACKING_URI": registry, **env})

    return run


def state(registry: str, model: str) -> tuple[list[Any], list[Any]]:
    """The versions of a model, and its runs."""
    client = MlflowClient(registry, registry)
    experiment = client.get_experiment_by_name(model)
    runs = client.search_runs([experiment.experiment_id]) if experiment else []
    return list(client.search_model_versions(f"name = '{model}'")), list(runs)


@scenario(
    given="one candidate",
    when="three runs register it at the same moment, and again on a 75, as Airflow does",
    then="all of them end well, with one version, one run and the alias candidate on it",
)
def test_runs_that_register_at_once_agree(
    registry: str,
    write_spec: Callable[..., tuple[str, str]],
    stages: dict[str, Artifact],
    store: Store,
) -> None:
    specs = [write_spec("register", {**CONFIG, "model": "at-once", "run_id": f"run-{turn}"}, stages) for turn in "abc"]

    def start(uri: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, **OFFLINE, "MLFLOW_TRACKING_URI": registry}
        command = [sys.executable, "-m", "jobs.register", "--spec", uri]
        for _ in range(3):
            done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
            if done.returncode != 75:
                break
        return done

    with ThreadPoolExecutor(3) as pool:
        ended = list(pool.map(start, [uri for uri, _ in specs]))
    assert [done.returncode for done in ended] == [0, 0, 0], "\n".join(done.stderr for done in ended)
    said = {store.read_json(name, "candidate.json")["version"] for _, name in specs}
    versions, runs = state(registry, "at-once")
    assert [str(version.version) for version in versions] == list(said)
    assert len(runs) == 1
    alias = MlflowClient(registry, registry).get_model_version_by_alias("at-once", "candidate")
    assert {str(alias.version)} == said


KILLS = 12


@scenario(
    given="a registration in its midst",
    when=f"it is SIGKILLed at {KILLS} random moments, each followed by another try",
    then="one version and one run of each; no half registration ever has the alias candidate",
)
def test_a_killed_registration_is_completed(
    registry: str,
    write_spec: Callable[..., tuple[str, str]],
    stages: dict[str, Artifact],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", registry)
    started = time.monotonic()
    assert register_in_a_process(write_spec, stages, "undisturbed") == 0
    usual = time.monotonic() - started
    moments = random.Random(20)
    interrupted = 0
    for number in range(KILLS):
        model = f"killed-{number}"
        code = register_in_a_process(write_spec, stages, model, kill_after=moments.uniform(0.05, usual))
        interrupted += code == -signal.SIGKILL
        require_whole(registry, model)
        assert register_in_a_process(write_spec, stages, model) == 0
        versions, runs = state(registry, model)
        assert (len(versions), len(runs)) == (1, 1)
        assert require_whole(registry, model)
    assert interrupted >= KILLS / 3


def register_in_a_process(
    write_spec: Callable[..., tuple[str, str]],
    stages: dict[str, Artifact],
    model: str,
    kill_after: float | None = None,
) -> int:
    """Run the job in a fork of this process, which has paid for the imports; returns its exit code."""
    from jobs.common.runtime import execute, load_spec
    from jobs.register.__main__ import run

    uri, _ = write_spec("register", {**CONFIG, "model": model, "run_id": f"{model}-{kill_after}"}, stages)
    spec = load_spec("register", uri)
    child = multiprocessing.get_context("fork").Process(target=execute, args=(spec, run), daemon=True)
    child.start()
    child.join(kill_after if kill_after is not None else 120)
    if child.is_alive():
        child.kill()
        child.join()
    assert child.exitcode is not None
    return child.exitcode


def require_whole(registry: str, model: str) -> bool:
    """Whether somebody has the alias; asserts that it is a whole registration."""
    client = MlflowClient(registry, registry)
    versions, _ = state(registry, model)
    alias = next(
        (found.aliases.get("candidate") for found in client.search_registered_models(f"name = '{model}'")), None
    )
    holders = [version for version in versions if str(version.version) == str(alias)]
    for version in holders:
        tags = client.get_model_version(model, version.version).tags
        assert {
            "anemone.champion_version",
            "anemone.recipe",
            "anemone.input_uri.merged",
            "anemone.digest",
        } <= tags.keys()
        found = client.get_run(version.run_id)
        assert found.info.status == "FINISHED"
        assert found.data.params["finetune.lora.dim"] == "16"
        assert len(client.get_metric_history(version.run_id, "train.loss")) == 1500
    return bool(holders)


@scenario(
    given="a candidate whose artifacts lie in a local store",
    when="MLflow is a server, which refuses file paths",
    then="it is registered, and the release finds everything by the version's tags",
)
def test_a_server_is_given_no_path(
    server: MlflowServer,
    register: Callable[..., Outcome],
    run_job: Callable[..., Outcome],
    stages: dict[str, Artifact],
) -> None:
    register(server.url, "by-server")
    version = MlflowClient(server.url, server.url).get_model_version_by_alias("by-server", "candidate")
    assert version.source == stages["merged"].uri.replace("file://", "anemone:")
    found = run_job("candidate", {"model": "by-server"}, env={"MLFLOW_TRACKING_URI": server.url})
    record = json.loads((found.folder / "candidate.json").read_text())
    assert record["inputs"]["merged"] == stages["merged"].model_dump()


GONE = "the job ends with 75 in bounded time and says where MLflow is and what to do; once it is back, it goes on"


class Away:
    """What keeps MLflow from answering, and how it comes back."""

    def __init__(self, server: MlflowServer, database: Path) -> None:
        self._server, self._database = server, database
        self._lock: sqlite3.Connection | None = None

    def begin(self, how: str) -> str:
        """Returns the address that the job is given."""
        match how:
            case "down":
                self._server.kill()
            case "hanging":
                self._server.hang()
            case "locked":
                self._lock = sqlite3.connect(self._database, isolation_level=None)
                self._lock.execute("BEGIN EXCLUSIVE")
            case "read-only":
                return f"sqlite:///file:{self._database}?mode=ro&uri=true"
            case "damaged":
                shutil.copy(self._database, f"{self._database}.good")
                self._database.write_bytes(os.urandom(50_000))
        return self.address(how)

    def end(self, how: str) -> str:
        match how:
            case "down":
                self._server.start()
            case "hanging":
                self._server.wake()
            case "locked":
                assert self._lock is not None
                self._lock.close()
            case "damaged":
                shutil.move(f"{self._database}.good", self._database)
        return self.address(how)

    def address(self, how: str) -> str:
        return self._server.url if how in ("down", "hanging") else f"sqlite:///{self._database}"


@pytest.mark.parametrize(
    ("how", "says"),
    [
        pytest.param(
            how, says, marks=scenario(given="a candidate to register", when=f"MLflow {when}", then=GONE), id=how
        )
        for how, when, says in [
            ("down", "does not run", "start its server, or wait for it"),
            ("hanging", "takes connections and never answers", "start its server, or wait for it"),
            ("locked", "has a database that somebody else holds", "wait for whoever holds its database"),
            ("read-only", "has a database that cannot be written", "see that it runs and can write"),
            ("damaged", "has a database whose file is rubbish", "where it is damaged, put a copy of it back"),
        ]
    ],
)
def test_a_registry_that_is_gone_is_waited_for(
    server: MlflowServer,
    database_file: Path,
    register: Callable[..., Outcome],
    message_of: Callable[[Outcome], str],
    how: str,
    says: str,
) -> None:
    away = Away(server, database_file)
    registry = away.begin(how)
    try:
        started = time.monotonic()
        outcome = register(registry, f"gone-{how}", expect=75)
        assert time.monotonic() - started < 150
    finally:
        registry = away.end(how)
    message = message_of(outcome)
    assert says in message
    assert f"MLflow at {registry.partition('://')[0]}" in message
    register(registry, f"gone-{how}")
    assert len(state(registry, f"gone-{how}")[0]) == 1


@scenario(
    given="an address of MLflow with a password",
    when="nobody answers there",
    then="the sentence names the address without the password",
)
def test_the_password_of_the_registry_is_not_told(
    register: Callable[..., Outcome], message_of: Callable[[Outcome], str]
) -> None:
    outcome = register("http://somebody:planted-secret@127.0.0.1:9", expect=75, MLFLOW_HTTP_REQUEST_MAX_RETRIES="0")
    assert "MLflow at http://127.0.0.1:9" in message_of(outcome)
    assert "planted-secret" not in outcome.stdout + outcome.stderr
