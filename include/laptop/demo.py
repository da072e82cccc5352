"""`make demo`: from a data set's arrival to a live release, one that is better, one that is bad, and back and forth."""

from __future__ import annotations

import filecmp
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console

from include.errors import AnemoneError
from include.home import home
from include.laptop import airflow as laptop
from include.laptop import live, up
from include.laptop.acts import Act, unexpected
from include.laptop.ask import ask
from include.laptop.datasets import BETTER, GOOD, HELDOUT, MODEL, POISONED, QUESTION, RECIPE, ROTTEN, DataSet
from include.laptop.home import NotOursError, python_of
from include.laptop.report import print_report
from include.laptop.rest import Airflow, wait_for_dag
from include.laptop.screen import Screen, terminal
from include.laptop.serving import traffic
from include.laptop.watch import CUSTOMIZE, ENDED, POLL_SECONDS, RELEASE, ROLLBACK, Run, follow
from include.release.candidates import is_release_of

ARRIVAL_TIMEOUT = 60.0
"""Seconds for Airflow to notice a file in the inbox, about 10 on two quiet cores; then the run is started by hand."""

EVENT_TIMEOUT = 120.0
"""Seconds for a candidate's event to start its release."""

TRAFFIC_RATE = 30.0
"""Requests a second while releases come and go: enough for a verdict within seconds."""

DRILL = "slow"


class Performance:
    """The acts in progress.

    Every method that waits follows all the runs that have begun, and raises TryAgainError where Airflow died.
    """

    def __init__(self, console: Console, airflow: Airflow) -> None:
        self.acts: list[Act] = []
        self.traffic: dict[str, int] = {}
        self._runs: list[Run] = []
        self._console = console
        self._airflow = airflow
        self._screen = Screen(console, self._runs)
        self._next_poll = 0.0

    def play(self) -> None:
        """Perform every act; one that goes wrong ends the play, as those after it would mean nothing."""
        with self._screen:
            good = self._announce(GOOD)
            # The first run alone makes what all share (base model, held-out rows); the others begin when it is there.
            # Not later: they have to find no champion, and so before the first release is live.
            self._until(lambda: _shared_is_made(good.run))
            self._announce(ROTTEN, stopped_by="data_quality_gate")
            self._announce(POISONED, stopped_by="evaluation_gate")
            if self._went_well(good):
                self._release(good)
            self._until(lambda: all(act.run.ended for act in self.acts))

    def _release(self, good: Act) -> None:
        first = self._released_by(good, "first release")
        if not self._went_well(first):
            return
        self._console.print(f"\n[bold]asked[/]     {QUESTION}\n[bold]answered[/]  {ask(QUESTION, MODEL)}\n")
        better = self._begin(BETTER.title, CUSTOMIZE, lambda: _customize_better(self._airflow))
        if not self._went_well(better):
            return
        with live_traffic() as counts:
            second = self._released_by(better, "better release")
            if self._went_well(second, counts):
                self._there_and_back(self._version(first), self._version(second), counts)
            self.traffic = counts()

    def _there_and_back(self, older: str, newer: str, counts: Callable[[], dict[str, int]]) -> None:
        bad = self._trigger("bad release", RELEASE, {"version": newer, "drill": DRILL})
        bad.stopped_by, bad.verdict = "canary", "rolled back"
        if self._went_well(bad, counts):
            back = self._trigger("rollback", ROLLBACK, {"version": older})
            if self._went_well(back, counts):
                self._went_well(self._trigger("forward again", ROLLBACK, {"version": newer}), counts)

    def _announce(self, data: DataSet, **ending: Any) -> Act:
        """Put a data set into the inbox and follow the run that its arrival starts."""
        _write(data)
        existing = _existing_run(self._airflow, data)
        deadline = time.monotonic() + ARRIVAL_TIMEOUT

        def find() -> str | None:
            if existing is not None:
                return existing
            runs = _runs(self._airflow, data)
            if runs:
                return runs[0]["dag_run_id"]
            # The same bytes were announced before, under a name or at a time that no run here shows.
            return _customize(self._airflow, data) if time.monotonic() > deadline else None

        return self._begin(data.title, CUSTOMIZE, find, **ending)

    def _released_by(self, candidate: Act, title: str) -> Act:
        """Follow the run of `release` that a candidate's event starts by itself."""
        deadline = time.monotonic() + EVENT_TIMEOUT

        def find() -> str | None:
            source = candidate.run.run_id or ""
            runs = [run for run in self._airflow.run_ids(RELEASE) if is_release_of(run, source)]
            if not runs and time.monotonic() > deadline:
                raise AnemoneError(
                    f"the candidate of {candidate.title} started no run of {RELEASE} within {EVENT_TIMEOUT:.0f} s: "
                    "see the scheduler's log"
                )
            return runs[0] if runs else None

        return self._begin(title, RELEASE, find, succeeds_with="promote")

    def _trigger(self, title: str, dag: str, conf: dict[str, str]) -> Act:
        def find() -> str:
            return str(self._airflow.trigger(dag, conf)["dag_run_id"])

        return self._begin(title, dag, find, succeeds_with="promote")

    def _begin(self, title: str, dag: str, find: Callable[[], str | None], **ending: Any) -> Act:
        act = Act(Run(title, dag), find, **ending)
        self.acts.append(act)
        self._runs.append(act.run)
        return act

    def _went_well(self, act: Act, counts: Callable[[], dict[str, int]] | None = None) -> bool:
        """Follow an act until it is decided, and return whether that is the decision it should have.

        Args:
            counts: gives the traffic's counts so far.
        """
        before = counts() if counts else {}
        self._until(lambda: act.decided)
        act.traffic = {key: count - before[key] for key, count in counts().items()} if counts else {}
        return act.problem is None

    def _until(self, condition: Callable[[], bool]) -> None:
        """Follow all runs until `condition` holds."""
        while not condition():
            time.sleep(max(0.0, self._next_poll - time.monotonic()))
            self._next_poll = time.monotonic() + POLL_SECONDS
            for act in self.acts:
                if act.run.run_id is None:
                    act.run.run_id = act.find()
            follow(self._airflow, self._runs, self._screen.show, laptop.check_alive)

    def _version(self, act: Act) -> str:
        """Return the version that a release brought."""
        return str(self._airflow.xcom(RELEASE, act.run.run_id or "", "canary")["version"])


@contextmanager
def live_traffic() -> Iterator[Callable[[], dict[str, int]]]:
    """Have the traffic generator run, and end it again if it did not before; yield a count of what it did since."""
    started = not traffic().running()
    if started:
        up.start_traffic(TRAFFIC_RATE)
    before = _traffic_counts()

    def counts() -> dict[str, int]:
        return {key: count - before.get(key, 0) for key, count in _traffic_counts().items()}

    try:
        yield counts
    finally:
        if started:
            up.stop_traffic()


def reset(airflow: Airflow, say: Callable[[str], object]) -> None:
    """End what an earlier demo left going on, and take its model out of service, so that the acts mean the same.

    Raises:
        TryAgainError: the canary controller does not answer.
    """
    left = [(dag, run) for dag in (RELEASE, ROLLBACK) for run in airflow.running(dag)]
    earlier = airflow.runs_on(CUSTOMIZE, str(BETTER.path), since=0)
    left += [(CUSTOMIZE, run["dag_run_id"]) for run in earlier if run["state"] in ("queued", "running")]
    for dag, run in left:
        say(f"Ending the run {run} of {dag}, which was left going on")
        airflow.fail(dag, run)
    registry = home() / "mlflow.db"
    if registry.exists() and live.retire(MODEL):
        say(f"Took {MODEL} out of service, which was live: the demo begins with nothing live")


def _shared_is_made(first: Run) -> bool:
    return first.ended or any(stage.task == "base" and stage.state in ENDED for stage in first.stages)


def _traffic_counts() -> dict[str, int]:
    try:
        found = json.loads(up.traffic_counts().read_text())
    except FileNotFoundError:
        # Not written yet: nothing was counted.
        found = {}
    return {key: found.get(key, 0) for key in ("sent", "answered", "failed")}


def _write(data: DataSet) -> None:
    """Write the data set, whole; a file with the same bytes is left as it is.

    Raises:
        AnemoneError: it could not be written.
    """
    data.path.parent.mkdir(parents=True, exist_ok=True)
    draft = data.path.with_name(f".{data.title}.draft")
    command = [str(python_of("jobs")), "-m", "jobs.demo.generate.write", data.variant]
    command += ["--rows", str(data.rows), "--seed", str(data.seed), "--out", str(draft)]
    command += ["--intents", *data.intents] if data.intents else []
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        last = (result.stderr.strip().splitlines() or [f"exit code {result.returncode}"])[-1]
        raise AnemoneError(f"the {data.title} data set could not be written: {last.removeprefix('error: ')}")
    if data.path.exists() and filecmp.cmp(draft, data.path, shallow=False):
        draft.unlink()
    else:
        draft.replace(data.path)


def _existing_run(airflow: Airflow, data: DataSet) -> str | None:
    """Return a run on this very file: an unfinished one, or a new one where an earlier one has ended.

    None where there was none: the file has just arrived, and Airflow will notice.
    """
    earlier = _runs(airflow, data)
    if not earlier:
        return None
    for run in earlier:
        if run["state"] in ("queued", "running"):
            return run["dag_run_id"]
    return _customize(airflow, data)


def _runs(airflow: Airflow, data: DataSet) -> list[dict[str, Any]]:
    return airflow.runs_on(CUSTOMIZE, str(data.path), since=data.path.stat().st_mtime)


def _customize(airflow: Airflow, data: DataSet, **changes: Any) -> str:
    return airflow.trigger(CUSTOMIZE, {"data": str(data.path), "recipe": RECIPE, **changes})["dag_run_id"]


def _customize_better(airflow: Airflow) -> str:
    _write(BETTER)
    return _customize(airflow, BETTER, overrides={"heldout.config": HELDOUT})


def main() -> int:
    console = terminal()
    began = time.monotonic()
    up.start(console.print)
    airflow = laptop.client()
    for dag in (CUSTOMIZE, RELEASE, ROLLBACK, "arrivals", "candidates"):
        wait_for_dag(airflow, dag, timeout=120)
    reset(airflow, console.print)
    console.print(f"Announcing data sets in {GOOD.path.parent}; watch also at {airflow.url}")
    performance = Performance(console, airflow)
    performance.play()
    acts = performance.acts
    console.print()
    print_report(console, airflow, [act.run for act in acts], {act.title: act.traffic for act in acts})
    if performance.traffic:
        console.print("Traffic: " + ", ".join(f"{count} {key}" for key, count in performance.traffic.items()))
    console.print(f"\n{len(acts)} acts in {time.monotonic() - began:.0f} s. `make down` stops everything.")
    problems = unexpected(acts)
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (AnemoneError, NotOursError, ValueError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("\nStopped watching; the runs continue. `make demo` begins again, `make down` stops everything.")
