"""`make gc`: what of the store to delete, and why; with DELETE=yes it is deleted.

Airflow and the serving side may run or not.
"""

from __future__ import annotations

import sqlite3
import sys
from collections.abc import Sequence
from contextlib import closing

from rich.console import Console
from rich.table import Table

from include.artifacts.store import Store
from include.artifacts.uses import Run
from include.errors import AnemoneError, ConfigurationError, TryAgainError
from include.home import home
from include.job_plan import JobPlan
from include.laptop.screen import terminal
from include.local_job import run_job
from include.platforms import Platform, load_platform
from include.retention import Deletion, Plan

_SHOWN = 40
"""Rows of a table; the whole plan is in its artifact."""


def collect(platform: Platform, console: Console, *, delete: bool) -> None:
    """Show a plan for `platform`'s store, and carry it out where `delete` says so.

    Raises:
        AnemoneError: somebody who knows what is needed does not answer; nothing was deleted.
    """
    store = Store(platform.store)
    if not store.names():
        console.print("The store is empty.")
        return
    planned = _run_retention(platform, store)
    plan = Plan.model_validate(store.read_json(planned.name, "plan.json"))
    _show(console, plan)
    console.print(f"the whole plan: {planned.uri}")
    if not plan.deletions:
        console.print("There is nothing to delete.")
        return
    if not delete:
        console.print("Nothing was deleted. To delete it: make gc DELETE=yes")
        return
    swept = _run_retention(platform, store, plan=planned.uri).name
    done = Plan.model_validate(store.read_json(swept, "swept.json"))
    console.print(f"{len(done.deletions)} deleted, {_size(done.freed)} freed.")
    for spared in store.read_json(swept, "spared.json"):
        console.print(f"{spared['path']} is retained: {spared['reason']}", markup=False)


def unfinished_runs() -> list[Run]:
    """Return the runs that this machine's Airflow has queued or running, whether it is up or not.

    Raises:
        TryAgainError: its database cannot be read.
    """
    database = home() / "airflow" / "airflow.db"
    if not database.is_file():
        return []
    try:
        with closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True, timeout=30)) as connection:
            rows = connection.execute("SELECT dag_id, run_id FROM dag_run WHERE state IN ('queued', 'running')")
            return [Run(dag_id=dag, run_id=run) for dag, run in rows]
    except sqlite3.Error as error:
        raise TryAgainError(
            f"the unfinished runs cannot be read from Airflow's database {database} ({error}): see that it is whole; "
            "nothing was deleted"
        ) from None


def _run_retention(platform: Platform, store: Store, plan: str | None = None) -> JobPlan:
    """Run the job `retention`, to make a plan or to carry out the one at the URI `plan`."""
    serving = platform.serving
    config = {
        "policy": platform.retention.policy,
        "unfinished_runs": unfinished_runs(),
        "controller_url": serving.controller_url,
        "token_file": serving.token_file,
        "records": serving.records,
    }
    job = JobPlan.prepare("retention", config=config, inputs={"plan": plan}, store=store)
    run_job(job, platform)
    return job


def _show(console: Console, plan: Plan) -> None:
    console.print(_deletions_table(plan))
    console.print()
    table = Table("retained", "bytes", "why", box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.columns[1].justify = "right"
    for retained in plan.retained:
        table.add_row(str(retained.count), _size(retained.bytes), retained.reason)
    console.print(table)
    console.print()
    for problem in plan.problems:
        console.print(f"to solve by hand: {problem}", markup=False)


def _deletions_table(plan: Plan) -> Table:
    """Return a table of the largest artifacts one by one, and of the other files by kind and reason."""
    table = Table("to delete", "last used", "bytes", "why", box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.columns[2].justify = "right"
    artifacts = sorted((each for each in plan.deletions if each.kind == "artifact"), key=lambda each: -each.bytes)
    for artifact in artifacts[:_SHOWN]:
        table.add_row(artifact.path, f"{artifact.last_used:%Y-%m-%d}", _size(artifact.bytes), artifact.reason)
    if others := artifacts[_SHOWN:]:
        table.add_row(f"{len(others)} more artifacts", "", _size(_bytes(others)), "see the plan")
    groups: dict[tuple[str, str], list[Deletion]] = {}
    for deletion in plan.deletions:
        if deletion.kind != "artifact":
            groups.setdefault((deletion.kind, deletion.reason), []).append(deletion)
    for (kind, reason), group in groups.items():
        oldest = min(deletion.last_used for deletion in group)
        table.add_row(f"{len(group)} × {kind}", f"{oldest:%Y-%m-%d}", _size(_bytes(group)), reason)
    table.add_row(f"{len(plan.deletions)} in all", "", _size(plan.freed), "", style="bold")
    return table


def _bytes(deletions: Sequence[Deletion]) -> int:
    return sum(deletion.bytes for deletion in deletions)


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def main(delete: str) -> None:
    """Collect garbage; `delete` is "yes", or empty for a dry run.

    Raises:
        ConfigurationError: it is anything else.
    """
    if delete not in ("", "yes"):
        raise ConfigurationError(f"DELETE is {delete!r}: leave it out to see what to delete, or set DELETE=yes")
    collect(load_platform("laptop"), terminal(), delete=bool(delete))


if __name__ == "__main__":
    try:
        main(sys.argv[1] if len(sys.argv) > 1 else "")
    except AnemoneError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
