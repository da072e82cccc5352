"""`make gc` in a home of its own, with the real job."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from include.artifacts.manifest import Manifest, Provenance
from include.artifacts.store import Store
from include.artifacts.uses import Run, note_uses
from include.home import PROJECT, home
from include.laptop.gc import unfinished_runs
from include.laptop.home import make_home

RUN = Run(dag_id="customize", run_id="manual__1")


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free_block: int) -> Store:
    """Of a home of its own, with the environments of this one."""
    environments = home() / "venvs"
    monkeypatch.setenv("ANEMONE_HOME", str(tmp_path / "home"))
    make_home()
    (tmp_path / "home" / "venvs").symlink_to(environments)
    return Store(f"file://{tmp_path}/home/store")


@pytest.fixture
def old(store: Store, commit: Callable[..., Manifest]) -> Callable[[str], None]:
    """Commit an artifact, as if that had been sixty days ago."""
    then = datetime.now(UTC) - timedelta(days=60)
    cost = {"wall_seconds": 0, "cpu_seconds": 0, "peak_rss_bytes": 0}
    made = Provenance(started=then, finished=then, host="test", python="3", **cost)
    return lambda name: commit(name, {"data": name}, provenance=made)


def airflow_knows(*runs: tuple[str, str, str]) -> None:
    (home() / "airflow").mkdir()
    with sqlite3.connect(home() / "airflow" / "airflow.db") as connection:
        connection.execute("CREATE TABLE dag_run (dag_id TEXT, run_id TEXT, state TEXT)")
        connection.executemany("INSERT INTO dag_run VALUES (?, ?, ?)", runs)


def gc(*arguments: str, expect: int = 0) -> str:
    command = [sys.executable, "-m", "include.laptop.gc", *arguments]
    done = subprocess.run(command, cwd=PROJECT, env=os.environ, capture_output=True, text=True)
    assert done.returncode == expect, done.stdout + done.stderr
    return done.stdout + done.stderr


def artifacts(store: Store) -> list[str]:
    return [name for name in store.names() if not name.startswith("retention-")]


def test_it_shows_a_plan_first_and_deletes_when_asked_to(store: Store, old: Callable[[str], None]) -> None:
    for name in ("merge-1", "merge-2"):
        old(name)
    note_uses(store, RUN, ["merge-2"])
    note = store.root.removeprefix("file://") + f"/uses/merge-2/{RUN.key}"
    long_ago = (datetime.now(UTC) - timedelta(days=50)).timestamp()
    os.utime(note, (long_ago, long_ago))
    airflow_knows((RUN.dag_id, RUN.run_id, "running"))
    output = gc()
    assert "merge-1" in output
    assert "not used for more than 30 days" in output
    assert "an unfinished run planned with it or made it" in output
    assert "Nothing was deleted. To delete it: make gc DELETE=yes" in output
    assert artifacts(store) == ["merge-1", "merge-2"]
    assert " deleted, " in gc("yes")
    assert artifacts(store) == ["merge-2"]


def test_another_word_than_yes_deletes_nothing(store: Store, old: Callable[[str], None]) -> None:
    old("merge-1")
    assert "DELETE is 'true': leave it out" in gc("true", expect=64)
    assert artifacts(store) == ["merge-1"]


def test_an_airflow_that_cannot_be_read_stops_it(store: Store, old: Callable[[str], None]) -> None:
    old("merge-1")
    (home() / "airflow").mkdir()
    (home() / "airflow" / "airflow.db").write_text("no database")
    output = gc("yes", expect=75)
    assert "the unfinished runs cannot be read from Airflow's database" in output
    assert "nothing was deleted" in output
    assert artifacts(store) == ["merge-1"]


def test_an_empty_store_is_no_trouble(store: Store) -> None:
    assert "The store is empty." in gc()


def test_runs_that_have_ended_are_not_unfinished(store: Store) -> None:
    assert unfinished_runs() == []
    airflow_knows(("a", "1", "running"), ("a", "2", "queued"), ("a", "3", "success"), ("b", "1", "failed"))
    assert unfinished_runs() == [Run(dag_id="a", run_id="1"), Run(dag_id="a", run_id="2")]
