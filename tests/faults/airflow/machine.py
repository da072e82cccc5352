"""A whole Airflow of its own on this machine, small runs of `customize` for it, and who may die in one."""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from include.artifacts.store import Store
from include.home import PROJECT
from include.laptop import airflow as laptop
from include.laptop.components import components
from include.laptop.home import python_of
from include.laptop.rest import Airflow, wait_for_dag
from tests.processes import alive, command_lines, parent
from tests.waiting import wait_for

DAG = "customize"
RECIPE = "own/0.8M_lora_cpu"
QUICK: dict[str, Any] = {
    "base.config": {"seed": 1, "hidden_size": 32, "layers": 1, "heads": 2, "steps": 30, "warmup_steps": 3},
    "finetune.steps": 24,
    "finetune.warmup_steps": 2,
    "finetune.validate_every": 8,
    "finetune.checkpoint_every": 8,
    "evaluate.rows": 40,
    "evaluate.few_shot": 1,
    "gates.evaluation.min_gain": -1,
    "gates.evaluation.max_heldout_loss": 100,
    "gates.evaluation.min_rows": 10,
}
"""Everything is done, nothing is learned, and the gates let it pass: a minute on two quiet cores."""

JOBS = ["pretrain", "ingest", "champion", "curate", "check", "finetune", "merge", "evaluate", "register"]
"""The verbs of such a run."""

ENDED = ("success", "failed")


@dataclass(frozen=True)
class Chain:
    """The processes that one task consists of, by their pids, the job's own first.

    Attributes:
        worker: the executor's process, which Airflow calls the supervisor of the task.
        supervisor: Anemone's, which ends the job's tree.
    """

    verb: str
    job: int
    supervisor: int
    task: int
    worker: int


class Machine:
    """One Airflow with the project's own DAGs, its store and its processes."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.store = Store(f"file://{home}/store")
        self.client: Airflow = laptop.client()

    # What a user does.

    def data(self, number: int, rows: int = 600) -> Path:
        """A good data set; another number gives other bytes."""
        path = self.home / "data" / f"good-{number}.jsonl"
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            command = [str(python_of("jobs")), "-m", "jobs.demo.generate.write", "train"]
            command += ["--rows", str(rows), "--seed", "1", "--out", str(path)]
            subprocess.run(command, cwd=PROJECT, check=True, capture_output=True)
            lines = path.read_text().splitlines(keepends=True)
            random.Random(number).shuffle(lines)
            path.write_text("".join(lines))
        return path

    def customize(self, data: Path | str, overrides: dict[str, Any] | None = None, **params: Any) -> str:
        """Start a run; returns its id."""
        conf = {"data": str(data), "recipe": RECIPE, "overrides": {**QUICK, **(overrides or {})}, **params}
        return self.client.trigger(DAG, conf)["dag_run_id"]

    def pause(self, dag: str, paused: bool = True) -> None:
        self.client.set_paused(dag, paused)

    def mark(self, run: str, task: str, state: str) -> None:
        """What a person does with *Mark task as …*."""
        path = f"/api/v2/dags/{DAG}/dagRuns/{run}/taskInstances/{task}"
        self.client._send("PATCH", path, json={"new_state": state})

    def clear(self, run: str, tasks: list[str] | None = None) -> None:
        """What a person does with *Clear*: these tasks and what follows them, or the whole run."""
        if tasks is None:
            self.client._send("POST", f"/api/v2/dags/{DAG}/dagRuns/{run}/clear", json={"dry_run": False})
            return
        body = {"dry_run": False, "dag_run_id": run, "task_ids": tasks, "only_failed": False}
        body |= {"include_downstream": True, "reset_dag_runs": True}
        self.client._send("POST", f"/api/v2/dags/{DAG}/clearTaskInstances", json=body)

    def up(self) -> None:
        """`make up`."""
        laptop.up()
        self.client = laptop.client()

    # What a user sees.

    def ended(self, run: str, seconds: float = 600, dag: str = DAG) -> str:
        """The state that a run ends in."""
        return wait_for(
            lambda: state if (state := self.client.run(dag, run)["state"]) in ENDED else None,
            seconds,
            lambda: f"the end of {run}: {self.states(run, dag)}",
            every=0.3,
        )

    def states(self, run: str, dag: str = DAG) -> dict[str, str]:
        return {task["task_id"]: task["state"] for task in self.client.task_instances(dag, run)}

    def tries(self, run: str) -> dict[str, int]:
        return {task["task_id"]: task["try_number"] for task in self.client.task_instances(DAG, run)}

    def log(self, run: str, task: str, number: int | None = None, dag: str = DAG) -> list[str]:
        """The lines of one try, or of the last one, with what a failure says."""
        if number is None:
            found = {task["task_id"]: task["try_number"] for task in self.client.task_instances(dag, run)}
            number = found[task]
        lines = []
        for record in self.client.log(dag, run, task, number):
            errors = [str(part.get("exc_value")) for part in record.get("error_detail") or ()]
            lines.append(" ".join([str(record.get("event")), *errors]))
        return [line for line in lines if not line.startswith("::")]

    def sentence(self, run: str, task: str, number: int | None = None, dag: str = DAG) -> str:
        """What the last line of a failed try's log says to the person who opens it."""
        lines = self.log(run, task, number, dag)
        failed = [line for line in lines if line.startswith("Task failed with exception")]
        assert failed, f"{task} says nothing:\n" + "\n".join(lines)
        return failed[-1].removeprefix("Task failed with exception").strip()

    def artifacts(self, run: str) -> dict[str, str]:
        """Name of the artifact that each stage of a run returned."""
        found = {task: self.client.xcom(DAG, run, task) for task in self.states(run)}
        return {task: Store.of(uri)[1] for task, uri in found.items() if isinstance(uri, str) and "://" in uri}

    def versions(self) -> int:
        """Model versions in MLflow."""
        database = self.home / "mlflow.db"
        if not database.exists():
            return 0
        with sqlite3.connect(database) as connection, suppress(sqlite3.OperationalError):
            return connection.execute("select count(*) from model_versions").fetchone()[0]
        return 0

    def events(self, asset: str) -> int:
        """How often something was announced of an asset."""
        with sqlite3.connect(self.home / "airflow" / "airflow.db") as connection:
            query = "select count(*) from asset_event join asset on asset.id = asset_id where asset.name = ?"
            return connection.execute(query, [asset]).fetchone()[0]

    def arrivals(self) -> list[str]:
        """Ids of the runs that arrived data sets started."""
        return [run for run in self.client.run_ids(DAG) if run.startswith("arrival__")]

    # Who runs here.

    def component(self, name: str) -> int:
        """The pid of one of Airflow's components."""
        identity = next(service for service in components() if service.name == name)._identity()
        assert identity is not None
        return identity.pid

    def kill_component(self, name: str) -> None:
        """SIGKILL one of Airflow's components; returns when it is gone: `make up` takes it for well until then."""
        pid = self.component(name)
        kill(pid)
        wait_for(lambda: not alive(pid), 10, f"{name} to be gone", every=0.01)

    def chains(self) -> list[Chain]:
        """The tasks whose job runs now."""
        found = []
        for pid, command in self.processes().items():
            if len(command) > 4 and command[1] == "-m" and command[2].startswith("jobs.") and "--spec" in command:
                above = [pid]
                while len(above) < 4 and (pid_above := parent(above[-1])) > 1:
                    above.append(pid_above)
                if len(above) == 4:
                    found.append(Chain(command[2].rpartition(".")[2], *above))
        return found

    def chain(self, verb: str, seconds: float = 240) -> Chain:
        """The task whose job is `verb`, as soon as it runs."""
        return wait_for(
            lambda: next((chain for chain in self.chains() if chain.verb == verb), None), seconds, verb, every=0.02
        )

    def processes(self) -> dict[int, list[str]]:
        """Command lines of everything that was started with this home."""
        return command_lines(self.home)

    def job_processes(self) -> list[int]:
        """Processes of jobs, and the supervisors that hold them."""
        marks = ("operators.local.supervisor", "jobs.")
        processes = self.processes().items()
        return [pid for pid, command in processes if any(part.startswith(marks) for part in command)]

    # What must hold after anything.

    def done_once(self, run: str) -> None:
        """Each stage of a run has one sound artifact, and none was worked on again after its commit."""
        for task, name in self.artifacts(run).items():
            manifest = self.store.manifest(name)
            assert manifest is not None, f"{task} returned {name}, which was never committed"
            with self.store.open_files(name):
                pass
            for events in (self.home / "store" / name / "attempts").glob("*/events.jsonl"):
                lines = events.read_text().splitlines()
                began = datetime.fromisoformat(json.loads(lines[0])["time"]) if lines else None
                late = began is not None and began > manifest.provenance.finished
                assert not late, f"{task} was begun again at {began}, though {name} was committed"
        wait_for(lambda: not self.job_processes(), 30, "the jobs to be gone")


def kill(pid: int, number: int = signal.SIGKILL) -> None:
    """Send a signal; who is gone already has only been faster."""
    with suppress(ProcessLookupError):
        os.kill(pid, number)


@contextmanager
def machine(home: Path) -> Iterator[Machine]:
    """An Airflow in a home of its own, with every DAG but the releases awake."""
    laptop.up()
    found = Machine(home)
    wait_for_dag(found.client, DAG, timeout=120)
    wait_for_dag(found.client, "candidates", timeout=120)
    # A release needs the serving side, which does not run here.
    found.pause("candidates")
    yield found
