"""Follow runs of Anemone's DAGs over Airflow's REST API: state, progress and key figures of every stage."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from include.errors import TryAgainError
from include.events import parse_fields
from include.laptop.rest import Airflow

CUSTOMIZE, RELEASE, ROLLBACK = "customize", "release", "rollback"
POLL_SECONDS = 1.0
ENDED = frozenset({"success", "failed", "upstream_failed", "skipped", "removed"})

_PATIENCE = 10
"""Polls in a row that Airflow may leave unanswered: a loaded machine is slow, not broken."""

_LOGGING = ("running", "deferred", "up_for_retry", "success", "failed")
"""Task states in which there is a log to read."""

_HOUSEKEEPING = frozenset({"progress", "seconds", "cpu_seconds", "files"})


@dataclass
class Stage:
    """One task of a run, as far as it got.

    Attributes:
        state: Airflow's task state; None before it was scheduled.
        operator: its class's name; empty before it was scheduled.
        progress: 0…1 of the running job, where it says so.
        latest: the numbers of its newest `key=value` line. `figures`: all its numbers, the newest of each name.
        reused: the artifact existed, and nothing was run.
        error: of a failed task, the message it ended with.
    """

    task: str
    state: str | None = None
    operator: str = ""
    seconds: float = 0.0
    progress: float | None = None
    latest: dict[str, str] = field(default_factory=dict)
    figures: dict[str, str] = field(default_factory=dict)
    reused: bool = False
    error: str = ""
    settled: bool = False

    def read(self, log: Sequence[dict[str, Any]]) -> None:
        """Take what a task's log says (records of `Airflow.log`, oldest first)."""
        self.progress, self.latest, self.figures, self.error = None, {}, {}, ""
        for record in log:
            line = str(record.get("event", ""))
            if line.startswith("reused "):
                self.reused = True
            if detail := record.get("error_detail"):
                self.error = " ".join(str(detail[0]["exc_value"]).split())
            fields = parse_fields(line)
            if "progress" in fields and _is_number(fields["progress"]):
                self.progress = float(fields["progress"])
            numbers = {key: text for key, text in fields.items() if key not in _HOUSEKEEPING and _is_number(text)}
            if numbers:
                self.latest = numbers
                self.figures.update(numbers)


@dataclass
class Run:
    """One run of a DAG.

    Attributes:
        title: how it is called on the screen.
        run_id: None until Airflow has made the run.
        state: "waiting" before that; then Airflow's: queued, running, success, failed.
    """

    title: str
    dag: str = CUSTOMIZE
    run_id: str | None = None
    state: str = "waiting"
    stages: list[Stage] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def ended(self) -> bool:
        return self.state in ("success", "failed")

    @property
    def stopped_by(self) -> Stage | None:
        """The first stage that failed, if any."""
        return next((stage for stage in self.stages if stage.state == "failed"), None)

    def stage(self, task: str) -> Stage | None:
        """Return the stage of that task id; None before the run exists."""
        return next((stage for stage in self.stages if stage.task == task), None)

    @property
    def gates(self) -> list[Stage]:
        """The stages that judge."""
        return [stage for stage in self.stages if stage.operator == "GateSensor"]

    @property
    def rollout(self) -> Stage | None:
        """The stage that brings a release to the traffic, if any."""
        return next((stage for stage in self.stages if stage.operator == "CanaryRolloutOperator"), None)

    def update(self, airflow: Airflow) -> None:
        """Ask Airflow how far the run is; do nothing before it exists and after it has ended."""
        if self.run_id is None or self.ended:
            return
        if not self.stages:
            self.stages = [Stage(task) for task in airflow.tasks(self.dag)]
        # First the run, then its tasks: a run that has ended has no task that still changes.
        run = airflow.run(self.dag, self.run_id)
        instances = {instance["task_id"]: instance for instance in airflow.task_instances(self.dag, self.run_id)}
        for stage in self.stages:
            if stage.task in instances and not stage.settled:
                self._update(stage, instances[stage.task], airflow)
        self.seconds = _seconds(run)
        self.state = run["state"]

    def _update(self, stage: Stage, instance: dict[str, Any], airflow: Airflow) -> None:
        stage.state, stage.seconds = instance["state"], _seconds(instance)
        stage.operator = instance["operator"] or ""
        if stage.state in _LOGGING and instance["try_number"]:
            stage.read(airflow.log(self.dag, self.run_id or "", stage.task, instance["try_number"]))
        stage.settled = stage.state in ENDED


def follow(airflow: Airflow, runs: Sequence[Run], show: Callable[[], None], alive: Callable[[], None]) -> None:
    """Update and show all runs once; the caller repeats this until it is content.

    Args:
        show: draws the runs.
        alive: raises where Airflow itself has died.

    Raises:
        TryAgainError: Airflow died, or does not answer any more.
    """
    for attempt in range(_PATIENCE):
        alive()
        try:
            for run in runs:
                run.update(airflow)
        except TryAgainError:
            if attempt == _PATIENCE - 1:
                raise
        else:
            break
        time.sleep(POLL_SECONDS)
    show()


def _seconds(record: dict[str, Any]) -> float:
    if not record["start_date"]:
        return 0.0
    end = datetime.fromisoformat(record["end_date"]) if record["end_date"] else datetime.now(UTC)
    return (end - datetime.fromisoformat(record["start_date"])).total_seconds()


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
