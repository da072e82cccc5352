"""`make gc`: what of the store may go, and why; with DELETE=yes it goes. Airflow and serving may run or not."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import uuid
from collections import Counter
from contextlib import closing
from typing import Any

from rich.console import Console
from rich.table import Table

from include.artifacts.store import Store
from include.artifacts.uses import Run
from include.code_identity import code_identity
from include.errors import AnemoneError, ConfigurationError, TryAgainError
from include.home import PROJECT, home
from include.laptop.screen import terminal
from include.platforms import Platform, load_platform
from include.retention import Going, Plan
from include.specs.base import Artifact
from include.specs.retention import Spec

_SHOWN = 40
"""Rows of a table; the whole plan is in its artifact."""


class JobFailedError(AnemoneError):
    """The job `retention` ended without its artifact."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def collect(platform: Platform, console: Console, *, delete: bool) -> None:
    """Show a plan of `platform`'s store, and carry it out where `delete` says so.

    Raises:
        AnemoneError: somebody who knows what is needed cannot be asked; nothing was deleted.
    """
    store = Store(platform.store)
    if not store.names():
        console.print("The store is empty.")
        return
    planned = _run(platform, store)
    plan = Plan.model_validate(store.read_json(planned, "plan.json"))
    _show(console, plan, "would go")
    console.print(f"the whole plan: {store.uri(planned)}")
    if not delete:
        console.print("Nothing was deleted. To let it go: make gc DELETE=yes" if plan.going else "Nothing is to go.")
        return
    if plan.going:
        swept = _run(platform, store, plan=planned)
        went = Plan.model_validate(store.read_json(swept, "swept.json"))
        console.print(f"{len(went.going)} went, {_size(went.freed)} are free.")
        for one in store.read_json(swept, "spared.json"):
            console.print(f"{one['path']} stays: {one['reason']}", markup=False)


def going_on() -> list[Run]:
    """The runs that this machine's Airflow has queued or running, whether it is up or not.

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
            f"Airflow's database {database} does not say which runs go on ({error}): see that it is whole; nothing was "
            "deleted"
        ) from None


def _run(platform: Platform, store: Store, plan: str | None = None) -> str:
    """Run the job `retention`, to plan or to carry a plan out; returns its artifact's name."""
    serving = platform.serving
    config = {
        "policy": platform.retention.policy,
        "going_on": going_on(),
        "controller_url": serving.controller_url,
        "token_file": serving.token_file,
        "records": serving.records,
    }
    inputs: dict[str, Any] = {}
    if plan is not None:
        manifest = store.manifest(plan)
        assert manifest is not None
        inputs["plan"] = Artifact(uri=store.uri(plan), digest=manifest.content_digest)
    name = f"retention-{uuid.uuid4().hex[:20]}"
    output = {"store": store.root, "name": name, "code": code_identity("retention", Spec.environment)}
    spec = Spec.model_validate({"config": config, "inputs": inputs, "output": output})
    uri = store.write_spec(name, spec.model_dump_json(indent=1))
    done = subprocess.run(
        [platform.python[Spec.environment], "-m", "jobs.retention", "--spec", uri],
        cwd=PROJECT,
        env={**os.environ, **platform.environment},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        words = done.stderr.strip().splitlines() or [f"the job ended with {done.returncode} and said nothing"]
        raise JobFailedError(words[-1].removeprefix("error: "), done.returncode)
    return name


def _show(console: Console, plan: Plan, going: str) -> None:
    artifacts = sorted((one for one in plan.going if one.kind == "artifact"), key=lambda one: -one.bytes)
    others = [one for one in plan.going if one.kind != "artifact"]
    table = Table(going, "last used", "bytes", "why", box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.columns[2].justify = "right"
    for one in artifacts[:_SHOWN]:
        table.add_row(one.path, f"{one.last_used:%Y-%m-%d}", _size(one.bytes), one.reason)
    if left := artifacts[_SHOWN:]:
        table.add_row(f"{len(left)} more artifacts", "", _size(sum(one.bytes for one in left)), "see the plan")
    for (kind, reason), count in Counter((one.kind, one.reason) for one in others).items():
        size = sum(one.bytes for one in others if (one.kind, one.reason) == (kind, reason))
        table.add_row(f"{count} × {kind}", _oldest(others, kind), _size(size), reason)
    table.add_row(f"{len(plan.going)} in all", "", _size(plan.freed), "", style="bold")
    console.print(table)
    console.print()
    stays = Table("stays", "bytes", "why", box=None, padding=(0, 2, 0, 0), header_style="dim")
    stays.columns[1].justify = "right"
    for one in plan.staying:
        stays.add_row(str(one.count), _size(one.bytes), one.reason)
    console.print(stays)
    console.print()
    for sentence in plan.trouble:
        console.print(f"see to it: {sentence}", markup=False)


def _oldest(going: list[Going], kind: str) -> str:
    return f"{min(one.last_used for one in going if one.kind == kind):%Y-%m-%d}"


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def main(delete: str) -> None:
    """`delete`: "yes", or empty for a dry run."""
    if delete not in ("", "yes"):
        raise ConfigurationError(f"DELETE is {delete!r}: leave it out to see what would go, or set DELETE=yes")
    collect(load_platform("laptop"), terminal(), delete=bool(delete))


if __name__ == "__main__":
    try:
        main(sys.argv[1] if len(sys.argv) > 1 else "")
    except AnemoneError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
