"""From one task's end to the next one's start: Airflow as shipped here against Airflow's own defaults.

    .anemone/venvs/airflow/bin/python tests/benchmarks/airflow_gap.py       # about five minutes

A chain of ten tasks that do nothing, run several times on a real Airflow, in turns: ours as `make up` starts it;
theirs by `airflow standalone` in an empty home, with nothing set but ports, bind address, the folder of DAGs, no
examples, and a login. Times are Airflow's own (`start_date` and `end_date` of the task instances).
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest.mock import patch

import frame

from include.errors import AnemoneError, TryAgainError
from include.home import home as project_home
from include.laptop import airflow as laptop
from include.laptop.components import down
from include.laptop.home import make_home
from include.laptop.rest import Airflow, wait_for_dag
from include.laptop.services import plain_environment
from tests.ports import free_home_port

TURNS, RUNS, TASKS = 2, 4, 10
TIMEOUT = 300.0
DAG = f"""
from airflow.sdk import chain, dag, task


@dag(schedule=None, catchup=False)
def ten():
    @task
    def nothing():
        pass

    chain(*(nothing.override(task_id=f"task{{number}}")() for number in range({TASKS})))


ten()
"""


def measure(small: bool) -> list[frame.Row]:
    turns, runs = (1, 2) if small else (TURNS, RUNS)
    gaps: dict[str, list[float]] = {"ours": [], "theirs": []}
    walls: dict[str, list[float]] = {"ours": [], "theirs": []}
    for _ in range(turns):
        for name, started in (("ours", ours), ("theirs", theirs)):
            with tempfile.TemporaryDirectory() as scratch:
                dags = Path(scratch) / "dags"
                dags.mkdir()
                (dags / "ten.py").write_text(DAG)
                with started(Path(scratch), dags) as airflow:
                    wait_for_dag(airflow, "ten", TIMEOUT)
                    airflow.set_paused("ten", False)
                    # The first run warms everything up, and is not counted.
                    for found, wall in [run(airflow) for _ in range(runs)][1:]:
                        gaps[name].append(found)
                        walls[name].append(wall)
    shown = (
        f"chain of {TASKS} empty tasks, {len(gaps['ours'])} runs a side in {turns} turns, a run's median gap each; "
        + frame.versions("apache-airflow")
        + ", SQLite, LocalExecutor"
    )
    return [
        frame.against("gap from a task's end to the next one's start / Airflow's defaults", gaps["ours"],
                      gaps["theirs"], unit="s", aim=3.0, conditions=shown),
        frame.against("a run of the ten tasks / Airflow's defaults", walls["ours"], walls["theirs"], unit="s",
                      conditions=shown),
    ]  # fmt: skip


def run(airflow: Airflow) -> tuple[float, float]:
    """One run; its median gap and its wall, in seconds."""
    number = airflow.trigger("ten", {})["dag_run_id"]
    deadline = time.monotonic() + TIMEOUT
    while (state := polled(airflow, number))["state"] not in ("success", "failed"):
        if time.monotonic() > deadline:
            raise TimeoutError(f"the run {number} takes more than {TIMEOUT:.0f} s")
        time.sleep(1)
    assert state["state"] == "success", state
    times = sorted(
        (datetime.fromisoformat(task["start_date"]), datetime.fromisoformat(task["end_date"]))
        for task in airflow.task_instances("ten", number)
    )
    found = [(later[0] - earlier[1]).total_seconds() for earlier, later in pairwise(times)]
    return statistics.median(found), (times[-1][1] - times[0][0]).total_seconds()


def polled(airflow: Airflow, number: str) -> dict[str, Any]:
    """The run's record; one that is still running where a loaded machine leaves the question unanswered."""
    try:
        return airflow.run("ten", number)
    except TryAgainError:
        return {"state": "running"}


@contextmanager
def ours(folder: Path, dags: Path) -> Iterator[Airflow]:
    environments = project_home() / "venvs"
    own = {"ANEMONE_HOME": str(folder / "home"), "ANEMONE_PORT": str(free_home_port()), "ANEMONE_DAGS": str(dags)}
    with patch.dict(os.environ, own):
        make_home()
        (folder / "home" / "venvs").symlink_to(environments)
        try:
            laptop.up()
            yield laptop.client()
        finally:
            down()


@contextmanager
def theirs(folder: Path, dags: Path) -> Iterator[Airflow]:
    port = free_home_port()
    address = f"http://127.0.0.1:{port}"
    root = folder / "airflow"
    root.mkdir()
    passwords = root / "passwords.json"
    passwords.write_text(json.dumps({"admin": "admin"}))
    settings = {
        "AIRFLOW_HOME": str(root),
        "AIRFLOW__CORE__DAGS_FOLDER": str(dags),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{address}/execution/",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(passwords),
        "AIRFLOW__API__HOST": "127.0.0.1",
        "AIRFLOW__API__PORT": str(port),
        "AIRFLOW__API__BASE_URL": f"{address}/",
        # Otherwise they listen on a port that another Airflow may hold, and on all interfaces.
        "AIRFLOW__LOGGING__WORKER_LOG_SERVER_PORT": str(port + 10),
        "AIRFLOW__LOGGING__TRIGGER_LOG_SERVER_PORT": str(port + 11),
        "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
    }
    with (folder / "standalone.log").open("wb") as log:
        process = subprocess.Popen(
            [str(Path(sys.executable).parent / "airflow"), "standalone"],
            env=defaults_environment(settings),
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        airflow = Airflow(address, "admin", "admin")
        deadline = time.monotonic() + TIMEOUT
        while not healthy(airflow):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError((folder / "standalone.log").read_text()[-3000:])
            time.sleep(0.5)
        yield airflow
    finally:
        process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            process.wait(30)
        # What is left of the session that was started above.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def defaults_environment(settings: Mapping[str, str]) -> dict[str, str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    return {**plain_environment(), "PATH": path, **settings}


def healthy(airflow: Airflow) -> bool:
    try:
        health = airflow.health()
    except AnemoneError:
        return False
    return all(health[name]["status"] == "healthy" for name in ("scheduler", "dag_processor", "triggerer"))


if __name__ == "__main__":
    frame.main(__doc__, measure)
