"""Runs that `make down` stopped in the middle: `make up` names them, goes on with them, and each can be dropped."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from include.home import PROJECT
from include.laptop import airflow
from include.laptop.components import down
from include.laptop.rest import wait_for_dag
from tests.faults.scenario import scenario
from tests.homes import own_home
from tests.waiting import wait_for

DAG = """
import pathlib, time
from airflow.sdk import Param, dag, task

@dag(schedule=None, params={"folder": Param("", type="string")})
def holder():
    @task(retries=2)
    def hold(params=None):
        folder = pathlib.Path(params["folder"])
        (folder / f"try-{time.monotonic()}").touch()
        while not (folder / "go").exists():
            time.sleep(0.1)
    hold()

holder()
"""


def make(command: str) -> subprocess.CompletedProcess[str]:
    """Run a line that the user was given, as it stands. What make checks before it is there already."""
    assert command.startswith("make ")
    tools = ["-o", "setup", "-o", "doctor"]
    words = ["make", "--no-print-directory", *tools, *command.split()[1:]]
    return subprocess.run(words, cwd=PROJECT, env=os.environ, capture_output=True, text=True, timeout=300)


@scenario(
    given="an Airflow with two runs at work",
    when="make down interrupts them, make up is called, and one is dropped by the command that it prints",
    then="make up names both with DAG and state before it goes on; the dropped one fails, the other ends well",
)
def test_make_up_names_what_it_goes_on_with_and_how_to_drop_it(tmp_path: Path) -> None:
    dags = tmp_path / "dags"
    dags.mkdir()
    (dags / "holder.py").write_text(DAG)
    with own_home(tmp_path, ANEMONE_DAGS=str(dags)):
        said: list[str] = []
        airflow.start(said.append)
        assert not any("make drop" in line for line in said)
        client = airflow.client()
        wait_for_dag(client, "holder", timeout=300)
        runs = {}
        for name in ("dropped", "kept"):
            (tmp_path / name).mkdir()
            runs[name] = client.trigger("holder", {"folder": str(tmp_path / name)})["dag_run_id"]
            wait_for(lambda name=name: list((tmp_path / name).glob("try-*")), 300, f"the first try of {name}")
        assert down()

        said.clear()
        airflow.start(said.append)
        client = airflow.client()
        text = "\n".join(said)
        for run in runs.values():
            assert f"  holder, running: {client.run_url('holder', run)}\n    make drop RUN=holder/{run}" in text
        assert "goes on with what was interrupted (2 runs)" in text
        (command,) = (line.strip() for line in said if line.endswith(f"RUN=holder/{runs['dropped']}"))
        done = make(command)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "marked as failed" in done.stdout
        for name in ("dropped", "kept"):
            (tmp_path / name / "go").touch()
        states = {}
        for name, run in runs.items():
            wait_for(lambda run=run: client.run("holder", run)["state"] in ("success", "failed"), 400, f"{name} to end")
            states[name] = client.run("holder", run)["state"]
        assert states == {"dropped": "failed", "kept": "success"}
        assert "has ended already (failed): there is nothing to drop" in make(command).stderr
        assert "has ended already (success)" in make(f"make drop RUN=holder/{runs['kept']}").stderr
        assert "there is no run 'none' of a DAG 'holder'" in make("make drop RUN=holder/none").stderr
        assert client.run("holder", runs["kept"])["state"] == "success"
