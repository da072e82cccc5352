"""What Airflow adds to the jobs of a whole `customize`, cold and with everything made before.

    .anemone/venvs/airflow/bin/python tests/benchmarks/customize.py       # about three minutes

The demo's first data set in a home of its own, which stays for the benchmarks of the engine and of serving. The wall is
the run's, from its start to its end by Airflow's clock; the jobs' own time is that in which at least one job worked, by
their manifests (some run side by side). The difference is scheduling, starting processes, naming and gates.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from unittest.mock import patch

import frame

from include.artifacts.manifest import Manifest
from include.artifacts.store import Store
from include.home import PROJECT
from include.home import home as project_home
from include.laptop import airflow as laptop
from include.laptop.components import down
from include.laptop.datasets import RECIPE
from include.laptop.home import make_home, python_of
from include.laptop.rest import Airflow, wait_for_dag
from include.laptop.watch import CUSTOMIZE
from tests.ports import free_home_port

ROWS = 4000
TIMEOUT = 900.0
JOBS = ("ingest", "base", "heldout", "champion", "curate", "check", "finetune", "merge", "evaluate", "register")


def measure(small: bool) -> list[frame.Row]:
    environments = project_home() / "venvs"
    folder = frame.scratch() / "home"
    if folder.is_dir():
        shutil.rmtree(folder)
    own = {"ANEMONE_HOME": str(folder), "ANEMONE_PORT": str(free_home_port())}
    with patch.dict(os.environ, own):
        make_home()
        (folder / "venvs").symlink_to(environments)
        data = folder / "data" / "good.jsonl"
        write(data, ROWS)
        try:
            laptop.up()
            airflow = laptop.client()
            wait_for_dag(airflow, CUSTOMIZE, 120)
            conf = {"data": str(data), "recipe": RECIPE}
            cold, jobs = run(airflow, conf)
            warm = [run(airflow, conf)[0] for _ in range(1 if small else 3)]
        finally:
            down()
    walls = {stage: manifest.provenance.wall_seconds for stage, manifest in jobs.items()}
    worked = covered([(made.provenance.started, made.provenance.finished) for made in jobs.values()])
    share = 100 * (cold - worked) / cold
    slowest = ", ".join(
        f"{stage} {seconds:.1f}" for stage, seconds in sorted(walls.items(), key=lambda item: -item[1])[:5]
    )
    shown = f"{RECIPE}, {ROWS:,} rows, once; {len(jobs)} jobs"
    return [
        frame.figure(
            "customize, cold: share of the wall in which no job works", [share], unit="%",
            conditions=f"{shown}; wall {cold:.1f} s, a job at work {worked:.1f} s, sum of the jobs' own walls "
            f"{sum(walls.values()):.1f} s ({slowest} …)",
        ),
        frame.figure("customize, everything made before: wall", warm, unit="s", conditions=shown),
    ]  # fmt: skip


def write(path: Path, rows: int) -> None:
    command = [str(python_of("jobs")), "-m", "jobs.demo.generate.write", "train"]
    arguments = ["--rows", str(rows), "--seed", "1", "--out", str(path)]
    subprocess.run([*command, *arguments], check=True, cwd=PROJECT, stdout=subprocess.DEVNULL)


def run(airflow: Airflow, conf: dict[str, object]) -> tuple[float, dict[str, Manifest]]:
    """One run to its end; its wall in seconds, and the manifests of its jobs by stage."""
    number = airflow.trigger(CUSTOMIZE, conf)["dag_run_id"]
    deadline = time.monotonic() + TIMEOUT
    while (state := airflow.run(CUSTOMIZE, number))["state"] not in ("success", "failed"):
        if time.monotonic() > deadline:
            raise TimeoutError(f"customize takes more than {TIMEOUT:.0f} s")
        laptop.check_alive()
        time.sleep(1)
    assert state["state"] == "success", {
        task["task_id"]: task["state"] for task in airflow.task_instances(CUSTOMIZE, number)
    }
    wall = datetime.fromisoformat(state["end_date"]) - datetime.fromisoformat(state["start_date"])
    found = {}
    for task in airflow.task_instances(CUSTOMIZE, number):
        if task["task_id"] in JOBS and task["state"] == "success":
            store, name = Store.of(airflow.xcom(CUSTOMIZE, number, task["task_id"]))
            manifest = store.manifest(name)
            assert manifest is not None
            found[task["task_id"]] = manifest
    return wall.total_seconds(), found


def covered(spans: Sequence[tuple[datetime, datetime]]) -> float:
    """Seconds that lie within at least one of the spans."""
    total, until = 0.0, None
    for start, end in sorted(spans):
        begin = start if until is None else max(start, until)
        total += max(0.0, (end - begin).total_seconds())
        until = end if until is None else max(until, end)
    return total


if __name__ == "__main__":
    frame.main(__doc__, measure)
