"""Airflow on this machine: killed in the middle of a task, started again, stopped; nothing is lost, nothing is left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from include.errors import ConfigurationError
from include.home import PROJECT
from include.laptop import airflow
from include.laptop.components import components, down
from include.laptop.home import make_home
from include.laptop.rest import wait_for_dag
from tests.faults.scenario import scenario
from tests.ports import free_home_port

DAG = """
import pathlib, time
from airflow.sdk import Param, dag, task

@dag(schedule=None, params={"folder": Param("", type="string"), "seconds": Param(60, type="integer")})
def sleeper():
    @task(retries=2)
    def sleep(params=None):
        folder = pathlib.Path(params["folder"])
        (folder / str(time.monotonic())).touch()
        if len(list(folder.iterdir())) == 1:
            time.sleep(params["seconds"])
    sleep()

sleeper()
"""


@pytest.fixture
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    dags = tmp_path / "dags"
    dags.mkdir()
    (dags / "sleeper.py").write_text(DAG)
    monkeypatch.setenv("ANEMONE_PORT", str(free_home_port()))
    monkeypatch.setenv("ANEMONE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("ANEMONE_DAGS", str(dags))
    yield make_home()
    down()


def started() -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "include.laptop.airflow"]
    return subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=600)


def ours() -> list[int]:
    return [pid for component in components() for pid in component._session()]


def wait_until(condition, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)


@scenario(
    given="an Airflow with a task at work",
    when="all of its components are SIGKILLed, and make up is called",
    then="the task is tried again, its run ends well, and make down leaves no process behind",
)
def test_a_killed_airflow_goes_on_where_it_was(own_home: Path, tmp_path: Path) -> None:
    first = started()
    assert first.returncode == 0, first.stderr
    again = started()
    assert "up already" in again.stdout
    client = airflow.client()
    wait_for_dag(client, "sleeper", timeout=120)
    with pytest.raises(ConfigurationError, match="seconds"):
        client.trigger("sleeper", {"folder": str(tmp_path), "seconds": "long"})
    tries = tmp_path / "tries"
    tries.mkdir()
    run = client.trigger("sleeper", {"folder": str(tries), "seconds": 300})["dag_run_id"]
    wait_until(lambda: list(tries.iterdir()), 120)

    for component in components():
        os.kill(json.loads(component.record.read_text())["pid"], signal.SIGKILL)
    wait_until(lambda: not any(component.running() for component in components()), 20)
    assert ours(), "the killed scheduler left its workers and the task behind"

    second = started()
    assert second.returncode == 0, second.stderr
    client = airflow.client()
    wait_until(lambda: client.run("sleeper", run)["state"] in ("success", "failed"), 180)
    assert client.run("sleeper", run)["state"] == "success"
    assert len(list(tries.iterdir())) == 2

    assert down()
    assert not ours()
    assert not down()
