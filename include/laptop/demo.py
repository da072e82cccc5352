"""`make demo`: three data sets, one good, one rotten, one poisoned, and what becomes of each."""

from __future__ import annotations

import filecmp
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from include.errors import AnemoneError
from include.laptop import airflow as laptop
from include.laptop.home import NotOursError, home, python_of
from include.laptop.report import print_report
from include.laptop.rest import Airflow, wait_for_dag
from include.laptop.screen import Screen, terminal
from include.laptop.watch import DAG, ENDED, POLL_SECONDS, Run, follow

RECIPE = "demo/0.8M_lora_cpu"
ARRIVAL_TIMEOUT = 60.0
"""Seconds for Airflow to notice a file in the inbox, about 10 on two quiet cores; then the run is started by hand."""


@dataclass(frozen=True)
class Act:
    """One data set of the demo.

    Attributes:
        variant: of `jobs.generate`. `stopped_by`: the task that must end the run; None for one that must succeed.
    """

    title: str
    variant: str
    rows: int
    seed: int
    stopped_by: str | None

    @property
    def path(self) -> Path:
        return home() / "inbox" / f"{self.title}.jsonl"


ACTS = (
    Act("good", "train", rows=4000, seed=1, stopped_by=None),
    Act("rotten", "rotten", rows=4000, seed=2, stopped_by="data_quality_gate"),
    Act("poisoned", "poisoned", rows=4000, seed=3, stopped_by="evaluation_gate"),
)


def perform(console: Console, airflow: Airflow, acts: Sequence[Act]) -> list[Run]:
    """Announce the data sets and follow their runs to the end.

    The first act alone makes what all share (base model, held-out rows); the others begin when it is there.

    Raises:
        TryAgainError: Airflow died.
    """
    runs = [Run(act.title, str(act.path)) for act in acts]
    started: list[Run] = []
    deadlines: dict[str, float] = {}
    with Screen(console, started) as screen:
        while not all(run.ended for run in runs):
            for act, run in zip(acts, runs, strict=True):
                if run not in started and (not started or _shared_is_made(runs[0])):
                    _announce(act)
                    run.run_id = _existing_run(airflow, act)
                    deadlines[run.title] = time.monotonic() + ARRIVAL_TIMEOUT
                    started.append(run)
                elif run in started and run.run_id is None:
                    run.run_id = _newest_run(airflow, act)
                    if run.run_id is None and time.monotonic() > deadlines[run.title]:
                        # The same bytes were announced before, under a name or at a time that no run here shows.
                        run.run_id = airflow.trigger(DAG, {"data": str(act.path), "recipe": RECIPE})["dag_run_id"]
            follow(airflow, started, screen.show, laptop.check_alive)
            time.sleep(POLL_SECONDS)
    return runs


def unexpected(acts: Sequence[Act], runs: Sequence[Run]) -> list[str]:
    """A sentence for each act that did not end as it should; a gate that broke has not decided anything."""
    sentences = []
    for act, run in zip(acts, runs, strict=True):
        stopped = run.stopped_by
        if act.stopped_by is None:
            as_wanted, wanted = run.state == "success", "succeed"
        else:
            as_wanted = stopped is not None and stopped.task == act.stopped_by and stopped.error.startswith("fail: ")
            wanted = f"be failed by {act.stopped_by}"
        if not as_wanted:
            found = f"ended in {stopped.task}: {stopped.error}" if stopped else f"ended as {run.state}"
            sentences.append(f"the {act.title} data set should {wanted}, but its run {found}")
    return sentences


def _shared_is_made(first: Run) -> bool:
    return first.ended or any(stage.task == "base" and stage.state in ENDED for stage in first.stages)


def _announce(act: Act) -> None:
    """Put the data set into the inbox, whole; a file with the same bytes is left as it is.

    Raises:
        AnemoneError: it could not be written.
    """
    draft = act.path.with_name(f".{act.title}.draft")
    command = [str(python_of("jobs")), "-m", "jobs.generate.write", act.variant]
    command += ["--rows", str(act.rows), "--seed", str(act.seed), "--out", str(draft)]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        last = (result.stderr.strip().splitlines() or [f"exit code {result.returncode}"])[-1]
        raise AnemoneError(f"the {act.title} data set could not be written: {last.removeprefix('error: ')}")
    if act.path.exists() and filecmp.cmp(draft, act.path, shallow=False):
        draft.unlink()
    else:
        draft.replace(act.path)


def _existing_run(airflow: Airflow, act: Act) -> str | None:
    """A run on this very file: one that still goes on, or a new one where an earlier one has ended.

    None where there was none: the file has just arrived, and Airflow will notice.
    """
    earlier = _runs(airflow, act)
    if not earlier:
        return None
    for run in earlier:
        if run["state"] in ("queued", "running"):
            return run["dag_run_id"]
    return airflow.trigger(DAG, {"data": str(act.path), "recipe": RECIPE})["dag_run_id"]


def _newest_run(airflow: Airflow, act: Act) -> str | None:
    runs = _runs(airflow, act)
    return runs[0]["dag_run_id"] if runs else None


def _runs(airflow: Airflow, act: Act) -> list[dict]:
    return airflow.runs_on(DAG, str(act.path), since=act.path.stat().st_mtime)


def main() -> int:
    console = terminal()
    began = time.monotonic()
    laptop.start(console.print)
    airflow = laptop.client()
    for dag in (DAG, "arrivals"):
        wait_for_dag(airflow, dag, timeout=120)
    console.print(f"Announcing {len(ACTS)} data sets in {home() / 'inbox'}; watch also at {airflow.url}")
    runs = perform(console, airflow, ACTS)
    console.print()
    print_report(console, airflow, runs)
    console.print(f"\nThree acts in {time.monotonic() - began:.0f} s. `make down` stops Airflow.")
    problems = unexpected(ACTS, runs)
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (AnemoneError, NotOursError, ValueError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("\nStopped watching; the runs go on. `make demo` watches them again, `make down` stops them.")
