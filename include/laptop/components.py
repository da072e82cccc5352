"""Airflow's components as services of this machine; stopping them and the serving side, removing the home.

`python -m include.laptop.components down|clean`. Standard library only: it works without any environment.
"""

from __future__ import annotations

import fcntl
import shutil
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

from include.errors import ConfigurationError
from include.home import PROJECT, home, port
from include.laptop.home import NotOursError, remove_home, run_folder
from include.laptop.services import Service
from include.laptop.serving import keeper, supervised_services, traffic

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
"""Seconds for a service to end, then for what it started; a job's process tree has the platform's own grace."""

_TRIGGERER_GRACE = 4.0
"""The same for the triggerer, whose child (Airflow 3.3.2) either ends within a second or has to be killed."""

JOB_GRACE = 20.0
"""Seconds for the jobs of ended tasks: the laptop platform's `grace_seconds` and a little."""


def components() -> list[Service]:
    """Return Airflow's components, in the order of their start."""
    return [Service(run_folder(), name) for name in COMMANDS]


def all_services() -> list[Service]:
    """Return Airflow's components and the serving side, in the order in which they are stopped.

    The keeper first, which would start others again. The scheduler is the first of Airflow's: its tasks still need the
    API to report how they end. What answers requests is last.
    """
    return [service for group in _stop_order() for service in group]


def _stop_order() -> list[list[Service]]:
    """Return all services in groups, each of which is stopped at once when those before it have ended."""
    scheduler, *others = reversed(components())
    serving = [supervised.service for supervised in supervised_services()]
    return [[keeper()], [traffic()], [scheduler], others, *([service] for service in reversed(serving))]


def down() -> bool:
    """End every service and all that belongs to it; return whether anything ran."""
    if not run_folder().is_dir():
        return False
    with exclusive(), ThreadPoolExecutor() as pool:
        stopped = [list(pool.map(_stop, group)) for group in _stop_order()]
        _wait_for_jobs()
        return any(map(any, stopped))


def _stop(service: Service) -> bool:
    return service.stop(_TRIGGERER_GRACE if service.name == "triggerer" else STOP_GRACE)


def claim_port() -> None:
    """Record the port for as long as anything runs; call it only under the lock `exclusive`.

    Raises:
        ConfigurationError: something runs already, with another port.
    """
    used = run_folder() / "port"
    if any(service.running() for service in all_services()):
        if used.read_text() != str(port()):
            raise ConfigurationError(f"Anemone is up on port {used.read_text()} already: `make down` ends it")
    else:
        used.write_text(str(port()))


def _wait_for_jobs() -> None:
    """Wait until the jobs of this home have saved and ended, which their supervisors enforce."""
    deadline = time.monotonic() + JOB_GRACE
    while _supervisors() and time.monotonic() < deadline:
        time.sleep(0.1)


def _supervisors() -> list[int]:
    """Return the pids of the supervisors of this home's jobs."""
    mark = f"ANEMONE_HOME={home()}".encode()
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            command = (folder / "cmdline").read_bytes()
            if b"operators.local.supervisor" in command and mark in (folder / "environ").read_bytes().split(b"\0"):
                found.append(int(folder.name))
    return found


def clean() -> Path:
    """Stop everything and remove all that Anemone made; return the removed folder.

    Raises:
        NotOursError: the folder was not made by Anemone.
    """
    down()
    if home() == PROJECT / ".anemone":
        shutil.rmtree(PROJECT / "anemone.egg-info", ignore_errors=True)
    return remove_home()


@contextmanager
def exclusive(wait: bool = True) -> Iterator[bool]:
    """Hold the lock of starts and stops; yield whether it was acquired, which it always is where `wait` is set."""
    run_folder().mkdir(parents=True, exist_ok=True)
    with (run_folder() / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def main(command: str) -> None:
    if command == "down":
        print("Airflow and serving are down." if down() else "Nothing was running.")
    elif command == "clean":
        print(f"Removed {clean()}. (uv keeps its downloads in a cache of its own: `uv cache clean` empties it.)")
    else:
        sys.exit("usage: python -m include.laptop.components down|clean")


if __name__ == "__main__":
    try:
        main(sys.argv[1] if len(sys.argv) > 1 else "")
    except NotOursError as error:
        sys.exit(f"error: {error}")
