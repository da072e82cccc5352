"""Airflow on this machine: killed in the middle of a task, started again, stopped; nothing is lost, nothing is left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from include.errors import ConfigurationError
from include.home import PROJECT
from include.laptop import airflow
from include.laptop.components import components, down
from include.laptop.rest import wait_for_dag
from tests.faults.scenario import scenario
from tests.homes import own_home
from tests.waiting import wait_for

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
def home(tmp_path: Path) -> Iterator[Path]:
    dags = tmp_path / "dags"
    dags.mkdir()
    (dags / "sleeper.py").write_text(DAG)
    with own_home(tmp_path, ANEMONE_DAGS=str(dags)) as home:
        yield home


def started() -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "include.laptop.airflow"]
    return subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=600)


def ours() -> list[int]:
    return [pid for component in components() for pid in component._session()]


@scenario(
    given="an Airflow with a task at work",
    when="all of its components are SIGKILLed, and make up is called",
    then="the task is tried again, its run ends well, and make down leaves no process behind",
)
def test_a_killed_airflow_goes_on_where_it_was(home: Path, tmp_path: Path) -> None:
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
    wait_for(lambda: list(tries.iterdir()), 120, "the task's first try")

    for component in components():
        os.kill(json.loads(component.record.read_text())["pid"], signal.SIGKILL)
    wait_for(lambda: not any(component.running() for component in components()), 20, "the components to be gone")
    assert ours(), "the killed scheduler left its workers and the task behind"

    second = started()
    assert second.returncode == 0, second.stderr
    client = airflow.client()
    wait_for(lambda: client.run("sleeper", run)["state"] in ("success", "failed"), 180, "the end of the run")
    assert client.run("sleeper", run)["state"] == "success"
    assert len(list(tries.iterdir())) == 2

    assert down()
    assert not ours()
    assert not down()
