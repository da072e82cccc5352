"""A client for the part of Airflow's REST API (v2) that the terminal needs."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import UTC, datetime
from graphlib import TopologicalSorter
from typing import Any

import httpx

from include.errors import AnemoneError, ConfigurationError, TryAgainError

_PAGE = 100

UNFINISHED = ("queued", "running")
"""States of a run that has not ended."""


class Airflow:
    """A client of one Airflow under SimpleAuthManager; fetches its token itself and again when it has expired.

    Args:
        url: e.g. `http://127.0.0.1:8080`.

    Every method raises TryAgainError where Airflow does not answer, and AnemoneError with Airflow's own words where it
    refuses.
    """

    def __init__(self, url: str, user: str, password: str) -> None:
        self.url = url
        self._login = {"username": user, "password": password}
        self._http = httpx.Client(base_url=url, timeout=30, trust_env=False)
        self._token = ""

    def health(self) -> dict[str, Any]:
        """Return state and latest heartbeat of each component; needs no login."""
        return self._send("GET", "/api/v2/monitor/health", authenticated=False).json()

    def find_dag(self, dag: str) -> dict[str, Any] | None:
        """Return a DAG; None where it has not been parsed and serialised yet."""
        answer = self._send("GET", f"/api/v2/dags/{dag}", accept=(200, 404))
        return answer.json() if answer.status_code == 200 else None

    def import_errors(self) -> list[dict[str, Any]]:
        """Return the DAG files that could not be imported: `filename`, `stack_trace`."""
        return self._get("/api/v2/importErrors")["import_errors"]

    def set_paused(self, dag: str, paused: bool) -> None:
        self._send("PATCH", f"/api/v2/dags/{dag}", json={"is_paused": paused})

    def trigger(self, dag: str, conf: Mapping[str, Any]) -> dict[str, Any]:
        """Start a run. Raises ConfigurationError where `conf` breaks a Param."""
        body = {"logical_date": None, "conf": dict(conf)}
        answer = self._send("POST", f"/api/v2/dags/{dag}/dagRuns", json=body, accept=(200, 400))
        if answer.status_code == 400:
            raise ConfigurationError(_detail(answer))
        return answer.json()

    def runs_on(self, dag: str, data: str, *, since: float) -> list[dict[str, Any]]:
        """Return the runs on the data set `data`, made at or after `since` (epoch seconds), newest first."""
        after = datetime.fromtimestamp(since, UTC).isoformat()
        path = f"/api/v2/dags/{dag}/dagRuns"
        runs = self._get(path, limit=_PAGE, order_by="-run_after", run_after_gte=after)["dag_runs"]
        return [run for run in runs if (run["conf"] or {}).get("data") == data]

    def run_ids(self, dag: str) -> list[str]:
        """Return the ids of the newest runs, newest first."""
        runs = self._get(f"/api/v2/dags/{dag}/dagRuns", limit=_PAGE, order_by="-run_after")["dag_runs"]
        return [run["dag_run_id"] for run in runs]

    def running(self, dag: str) -> list[str]:
        """Return the ids of the runs that have not ended."""
        path = f"/api/v2/dags/{dag}/dagRuns"
        return [run["dag_run_id"] for run in self._get(path, limit=_PAGE, state=UNFINISHED)["dag_runs"]]

    def unfinished(self, limit: int = _PAGE) -> tuple[list[dict[str, Any]], int]:
        """Return up to `limit` runs of all DAGs that have not ended, oldest first, and how many there are."""
        found = self._get("/api/v2/dags/~/dagRuns", limit=limit, order_by="run_after", state=UNFINISHED)
        return found["dag_runs"], found["total_entries"]

    def find_run(self, dag: str, run: str) -> dict[str, Any] | None:
        """Return a run; None where there is no such run, or DAG."""
        answer = self._send("GET", f"/api/v2/dags/{dag}/dagRuns/{run}", accept=(200, 404))
        return answer.json() if answer.status_code == 200 else None

    def fail(self, dag: str, run: str) -> None:
        """Mark a run and its running tasks as failed."""
        self._send("PATCH", f"/api/v2/dags/{dag}/dagRuns/{run}", json={"state": "failed"})

    def run(self, dag: str, run: str) -> dict[str, Any]:
        return self._get(f"/api/v2/dags/{dag}/dagRuns/{run}")

    def tasks(self, dag: str) -> list[str]:
        """Return the task ids in topological order."""
        tasks = self._get(f"/api/v2/dags/{dag}/tasks")["tasks"]
        upstream: dict[str, list[str]] = {task["task_id"]: [] for task in tasks}
        for task in tasks:
            for below in task["downstream_task_ids"]:
                upstream[below].append(task["task_id"])
        return list(TopologicalSorter(upstream).static_order())

    def task_instances(self, dag: str, run: str) -> list[dict[str, Any]]:
        return self._get(f"/api/v2/dags/{dag}/dagRuns/{run}/taskInstances", limit=_PAGE)["task_instances"]

    def xcom(self, dag: str, run: str, task: str, key: str = "return_value") -> Any:
        """Return the XCom that a task pushed, by default what it returned; None where there is none (yet)."""
        path = f"/api/v2/dags/{dag}/dagRuns/{run}/taskInstances/{task}/xcomEntries/{key}"
        answer = self._send("GET", path, accept=(200, 404), params={"deserialize": True})
        return answer.json()["value"] if answer.status_code == 200 else None

    def log(self, dag: str, run: str, task: str, try_number: int) -> list[dict[str, Any]]:
        """Return a task's log, oldest line first: records with `event` (text), mostly `level` and `timestamp`."""
        path = f"/api/v2/dags/{dag}/dagRuns/{run}/taskInstances/{task}/logs/{try_number}"
        answer = self._send("GET", path, accept=(200, 404), headers={"Accept": "application/json"})
        content = answer.json().get("content", []) if answer.status_code == 200 else []
        return [record if isinstance(record, dict) else {"event": record} for record in content]

    def run_url(self, dag: str, run: str) -> str:
        """Return the address of a run in Airflow's web UI."""
        return f"{self.url}/dags/{dag}/runs/{run}"

    def _get(self, path: str, **params: Any) -> dict[str, Any]:
        return self._send("GET", path, params=params).json()

    def _send(
        self, method: str, path: str, *, accept: tuple[int, ...] = (200,), authenticated: bool = True, **request: Any
    ) -> httpx.Response:
        for attempt in range(2):
            headers = dict(request.pop("headers", {}))
            if authenticated:
                headers["Authorization"] = f"Bearer {self._token or self._authenticate()}"
            try:
                answer = self._http.request(method, path, headers=headers, **request)
            except httpx.HTTPError as error:
                raise TryAgainError(f"Airflow does not answer at {self.url} ({error}): `make up` starts it") from None
            if answer.status_code == 401 and authenticated and attempt == 0:
                self._token = ""
                continue
            break
        if answer.status_code not in accept:
            raise AnemoneError(f"Airflow refused {method} {path} with {answer.status_code}: {_detail(answer)}")
        return answer

    def _authenticate(self) -> str:
        answer = self._send("POST", "/auth/token", accept=(200, 201), authenticated=False, json=self._login)
        self._token = answer.json()["access_token"]
        return self._token


def wait_for_dag(airflow: Airflow, dag: str, timeout: float) -> None:
    """Return once the DAG is known and switched on.

    Raises:
        AnemoneError: it is not there after `timeout` seconds; the message holds the import error if there is one.
    """
    deadline = time.monotonic() + timeout
    while (found := airflow.find_dag(dag)) is None:
        for broken in airflow.import_errors():
            reason = broken["stack_trace"].strip().splitlines()[-1]
            raise AnemoneError(f"Airflow cannot import {broken['filename']} ({reason}): correct the file")
        if time.monotonic() > deadline:
            raise AnemoneError(
                f"Airflow does not know the DAG {dag!r} after {timeout:.0f} s: see the dag-processor's log"
            )
        time.sleep(0.3)
    if found["is_paused"]:
        airflow.set_paused(dag, False)


def _detail(answer: httpx.Response) -> str:
    try:
        detail = answer.json()["detail"]
    except (ValueError, KeyError, TypeError):
        return answer.text[:500]
    return detail if isinstance(detail, str) else str(detail)
