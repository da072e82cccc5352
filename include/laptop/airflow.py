"""Airflow on this machine, without a person: `python -m include.laptop.airflow` starts it.

The four components run as services of their own rather than under `airflow standalone`: each can be told not to open
a log server on all interfaces, one that died can be started again alone, and none is orphaned by a SIGTERM.
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import time
from base64 import urlsafe_b64encode
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from include.errors import AnemoneError, ConfigurationError, TryAgainError
from include.home import PROJECT, home, port
from include.laptop.components import COMMANDS, claim_port, components, exclusive
from include.laptop.home import NotOursError, make_home, run_folder, write_private
from include.laptop.rest import Airflow
from include.laptop.services import plain_environment
from include.platforms import load_platform

USER = "admin"
_LISTED_RUNS = 10
_PASSES_TIMEOUT = 30.0
START_TIMEOUT = 300.0
"""Seconds until every component must be healthy: 20 on two quiet cores, far more on a loaded machine."""


def environment() -> dict[str, str]:
    """Return the environment of every component and task; make the secrets on first use."""
    root = home()
    folder = root / "airflow"
    address = f"http://127.0.0.1:{port()}"
    binaries = Path(sys.executable).parent
    settings = {
        "CORE__DAGS_FOLDER": os.environ.get("ANEMONE_DAGS") or str(PROJECT / "dags"),
        "CORE__PLUGINS_FOLDER": str(PROJECT / "plugins"),
        "CORE__LOAD_EXAMPLES": "False",
        # The scheduler starts last, so nothing runs before everything is there; the inbox is watched from then on.
        "CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
        "CORE__EXECUTOR": "LocalExecutor",
        "CORE__PARALLELISM": "4",
        "CORE__EXECUTION_API_SERVER_URL": f"{address}/execution/",
        "CORE__FERNET_KEY": _secret("fernet"),
        "CORE__SIMPLE_AUTH_MANAGER_USERS": f"{USER}:admin",
        "CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(_passwords()),
        # SQLite's default of 5 s is too short on a busy machine: a request for a run would fail.
        "DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{folder}/airflow.db?timeout=60",
        "API__HOST": "127.0.0.1",
        "API__PORT": str(port()),
        "API__BASE_URL": f"{address}/",
        "API__WORKERS": "1",
        "API__SECRET_KEY": _secret("api"),
        "API_AUTH__JWT_SECRET": _secret("jwt"),
        # At 0.05 the next task starts 0.1 s earlier, and the scheduler alone takes a quarter of a core.
        "SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": "0.25",
        "SCHEDULER__SCHEDULER_HEARTBEAT_SEC": "1",
        # A run that lost its scheduler (power, kill -9) continues within half a minute of the next start.
        "SCHEDULER__SCHEDULER_HEALTH_CHECK_THRESHOLD": "20",
        "SCHEDULER__ORPHANED_TASKS_CHECK_INTERVAL": "10",
        # A task whose worker was killed is retried within a minute; Airflow's default is five.
        "SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "60",
        "DAG_PROCESSOR__PARSING_PROCESSES": "1",
        "DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "60",
        "LOGGING__BASE_LOG_FOLDER": str(folder / "logs"),
        "USAGE_DATA_COLLECTION__ENABLED": "False",
    }
    return {
        **plain_environment(),
        "AIRFLOW_HOME": str(folder),
        "ANEMONE_HOME": str(root),
        "ANEMONE_PLATFORM": "laptop",
        "PATH": f"{binaries}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        "PYTHONUNBUFFERED": "1",
        **{f"AIRFLOW__{key}": value for key, value in settings.items()},
    }


def password() -> str:
    """Return the password of `admin`; make it on first use."""
    return json.loads(_passwords().read_text())[USER]


def client() -> Airflow:
    """Return a REST client of this machine's Airflow, logged in as `admin`."""
    return Airflow(f"http://127.0.0.1:{port()}", USER, password())


def up(say: Callable[[str], object] = lambda line: None) -> bool:
    """Start what does not run yet, and wait until all of it is healthy.

    Args:
        say: takes a line for the user about each run that an earlier stop has interrupted.

    Returns:
        Whether anything had to be started.

    Raises:
        TryAgainError: a component died or did not become healthy; the message holds the end of its log.
        ConfigurationError: Anemone runs already, on another port; or the inbox cannot be made.
    """
    make_home()
    _make_inbox()
    with exclusive():
        missing = [service for service in components() if not service.running()]
        claim_port()
        if missing:
            began = datetime.now(UTC)
            for service in missing:
                service.stop(grace=0)
            settings = environment()
            _migrate(settings)
            for service in missing:
                if service.name == "scheduler":
                    _wait(began, ())
                    # Nothing of them has gone on yet, and nothing new has begun.
                    for line in _interrupted(client()):
                        say(line)
                service.start([str(Path(sys.executable).parent / "airflow"), *COMMANDS[service.name]], settings)
            _wait(began, [service.name for service in missing])
            _wait_for_passes(client())
        return bool(missing)


def start(say: Callable[[str], object]) -> None:
    """Call `up`, with a line before and after for the user."""
    if any(not service.running() for service in components()):
        say("Starting Airflow (half a minute on two quiet cores) …")
    began = time.monotonic()
    state = f"Airflow is up after {time.monotonic() - began:.0f} s" if up(say) else "Airflow is up already"
    say(f"{state}: http://127.0.0.1:{port()}  user {USER}  password {password()}")


def _interrupted(airflow: Airflow) -> list[str]:
    """Return what to tell of the runs that were stopped in the middle: Airflow goes on with them by itself."""
    runs, count = airflow.unfinished(limit=_LISTED_RUNS)
    if not runs:
        return []
    lines = [
        f"Airflow goes on with what was interrupted ({count} run{'s' * (count > 1)}); a candidate that comes of it is "
        "released, too. To drop one:"
    ]
    for run in runs:
        dag, name = run["dag_id"], run["dag_run_id"]
        lines += [f"  {dag}, {run['state']}: {airflow.run_url(dag, name)}", f"    make drop RUN={dag}/{name}"]
    if count > len(runs):
        lines.append(f"  and {count - len(runs)} more: {airflow.url}/dag_runs")
    return lines


def check_alive() -> None:
    """Raise TryAgainError with the end of its log where a component has died."""
    for service in components():
        if not service.running():
            tail = service.last_lines(15)
            raise TryAgainError(f"{tail}\nAirflow's {service.name} is not running; its log is {service.log}: `make up`")


def _wait(began: datetime, fresh: list[str] | tuple[str, ...]) -> None:
    """Wait until the API answers, and the components in `fresh` have shown a heartbeat since `began`.

    A heartbeat of an earlier start still counts as healthy for a while in Airflow's own eyes.
    """
    airflow = client()
    deadline = time.monotonic() + START_TIMEOUT
    expected = {name.replace("-", "_") for name in fresh if name != "api-server"}
    while True:
        for service in components():
            started = service.record.exists()
            if started and not service.running():
                tail = service.last_lines(15)
                raise TryAgainError(f"{tail}\nAirflow's {service.name} ended on its own; its log is {service.log}")
        try:
            health = airflow.health()
        except AnemoneError:
            health = None
        if health is not None:
            waiting = {name for name in expected if not _beats(health.get(name), name, began)}
            if not waiting:
                return
        else:
            waiting = {"api_server"}
        if time.monotonic() > deadline:
            names = ", ".join(sorted(waiting))
            raise TryAgainError(
                f"Airflow is not healthy after {START_TIMEOUT:.0f} s ({names}): see {run_folder()}/*.log"
            )
        time.sleep(0.2)


def _wait_for_passes(airflow: Airflow) -> None:
    """Wait until the runs of `arrivals` and `candidates` that the clock has started are through, or for a while.

    Airflow's API server writes its audit log on its event loop. On SQLite, a request of ours that changes something
    while a task reports its start can meet it there, and each waits for the other until the database gives up, after a
    minute. Just after the start the two are sure to meet.
    """
    deadline = time.monotonic() + _PASSES_TIMEOUT
    while any(run["dag_id"] in ("arrivals", "candidates") for run in airflow.unfinished()[0]):
        if time.monotonic() > deadline:
            return
        time.sleep(0.2)


def _beats(state: dict[str, str | None] | None, name: str, began: datetime) -> bool:
    beat = (state or {}).get(f"latest_{name}_heartbeat")
    return bool(state and beat and state["status"] == "healthy" and datetime.fromisoformat(beat) >= began)


def _migrate(settings: dict[str, str]) -> None:
    """Bring the database to this Airflow's schema, unless that was done before: it takes seconds."""
    done = home() / "airflow" / "migrated"
    database = home() / "airflow" / "airflow.db"
    lock = (PROJECT / "requirements/airflow.txt").read_text()
    if done.is_file() and database.is_file():
        if done.read_text() == lock:
            return
    else:
        # The first migration was interrupted.
        database.unlink(missing_ok=True)
    command = [str(Path(sys.executable).parent / "airflow"), "db", "migrate"]
    result = subprocess.run(command, env=settings, capture_output=True, text=True)
    if result.returncode:
        tail = "\n".join((result.stdout + result.stderr).splitlines()[-15:])
        raise AnemoneError(
            f"{tail}\nAirflow could not set up its database in {home() / 'airflow'}: see the lines above"
        )
    done.write_text(lock)


def _make_inbox() -> None:
    """Make the folder in which data sets arrive, where it is missing, so that a file can be put into it at once."""
    folder = Path(load_platform("laptop").arrivals.folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(
            f"the folder {folder}, in which data sets arrive, cannot be made ({error}): make it, or correct "
            "arrivals.folder in include/platforms/laptop.yaml"
        ) from None


def _passwords() -> Path:
    path = home() / "airflow" / "passwords.json"
    if not path.is_file():
        write_private(path, json.dumps({USER: secrets.token_urlsafe(12)}) + "\n")
    return path


def _secret(name: str) -> str:
    """Return a random key of this installation, made on first use: 32 bytes, base64, as Fernet needs them."""
    path = home() / "airflow" / "secrets" / name
    if not path.is_file():
        write_private(path, urlsafe_b64encode(secrets.token_bytes(32)).decode())
    return path.read_text()


def main() -> None:
    start(print)


if __name__ == "__main__":
    try:
        main()
    except (AnemoneError, NotOursError, ValueError) as error:
        sys.exit(f"error: {error}")
