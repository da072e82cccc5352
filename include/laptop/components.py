"""Airflow's components as services of this machine: which there are, stopping them, removing the home.

`python -m include.laptop.components down|clean`. Standard library only: it works without any environment.
"""

from __future__ import annotations

import fcntl
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from include.laptop.home import PROJECT, NotOursError, home, remove_home, run_folder
from include.laptop.services import Service

COMMANDS = {
    "api-server": ["api-server"],
    "dag-processor": ["dag-processor"],
    "triggerer": ["triggerer", "--skip-serve-logs"],
    "scheduler": ["scheduler", "--skip-serve-logs"],
}
"""Arguments of the `airflow` command, in the order of the start.

The log servers that are left out would listen on all interfaces; on one machine the web UI reads the files.
"""

STOP_GRACE = 8.0
"""Seconds for a component to end, then for its running tasks; a job's process tree has the platform's own grace."""


JOB_GRACE = 20.0
"""Seconds for the jobs of ended tasks: the laptop platform's `grace_seconds` and a little."""


def components() -> list[Service]:
    """In the order of their start."""
    return [Service(run_folder(), name) for name in COMMANDS]


def down() -> bool:
    """End every component and all that belongs to it; returns whether anything ran."""
    if not run_folder().is_dir():
        return False
    with alone():
        # The scheduler first: its tasks still need the API to report how they end.
        stopped = [component.stop(STOP_GRACE) for component in reversed(components())]
        _wait_for_jobs()
        return any(stopped)


def _wait_for_jobs() -> None:
    """Until the jobs of this home have saved and ended; their supervisors see to it that they do."""
    deadline = time.monotonic() + JOB_GRACE
    while _supervisors() and time.monotonic() < deadline:
        time.sleep(0.1)


def _supervisors() -> list[int]:
    """The processes that hold this home's jobs."""
    mark = f"ANEMONE_HOME={home()}".encode()
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            command = (folder / "cmdline").read_bytes()
            if b"operators.supervisor" in command and mark in (folder / "environ").read_bytes().split(b"\0"):
                found.append(int(folder.name))
    return found


def clean() -> Path:
    """Stop Airflow and remove all that Anemone made; returns the removed folder.

    Raises:
        NotOursError: the folder was not made by Anemone.
    """
    down()
    if home() == PROJECT / ".anemone":
        shutil.rmtree(PROJECT / "anemone.egg-info", ignore_errors=True)
    return remove_home()


@contextmanager
def alone() -> Iterator[None]:
    """One start or stop at a time."""
    run_folder().mkdir(parents=True, exist_ok=True)
    with (run_folder() / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def main(command: str) -> None:
    if command == "down":
        print("Airflow is down." if down() else "Airflow was not running.")
    elif command == "clean":
        print(f"Removed {clean()}. (uv keeps its downloads in a cache of its own: `uv cache clean` empties it.)")
    else:
        sys.exit("usage: python -m include.laptop.components down|clean")


if __name__ == "__main__":
    try:
        main(sys.argv[1] if len(sys.argv) > 1 else "")
    except NotOursError as error:
        sys.exit(f"error: {error}")
