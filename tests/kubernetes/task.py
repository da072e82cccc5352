"""One task of Airflow's, each step as another process does it: a worker's try, the triggerer's wait, a worker again.

`python -m tests.kubernetes.task` is the worker that a test kills: it follows its pod itself, and defers nothing.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

from airflow.sdk.exceptions import TaskDeferred
from airflow.sdk.module_loading import import_string

from include.home import PROJECT
from operators.kubernetes.training_operator import DistributedJobOperator
from tests.kubernetes.namespace import Namespace


class _Ti(SimpleNamespace):
    def xcom_push(self, key: str, value: Any) -> None:
        self.xcom[key] = value


class Task:
    """The task `task_id` of one run, over all of its tries.

    Args:
        run: id of the run; another run is another task. `section`, `inputs`: the operator's.
        refresh: make it anew although it was made before.
        kwargs: any of the operator's arguments.
    """

    def __init__(
        self,
        run: str,
        section: dict[str, Any],
        inputs: dict[str, str] | None = None,
        *,
        refresh: bool = True,
        **kwargs: Any,
    ) -> None:
        self._run, self._section, self._inputs, self._refresh = run, section, inputs or {}, refresh
        self._kwargs = {"poll_interval": 1, **kwargs}
        self._tries = 0

    def begin(self) -> TaskDeferred | str | None:
        """The next try, until it defers or ends."""
        self._tries += 1
        self.context = _context(self._run, self._section["job"], self._tries, self._refresh)
        try:
            return self.operator().execute(self.context)
        except TaskDeferred as deferred:
            return deferred

    def resume(self, deferred: TaskDeferred) -> Any:
        """What the triggerer and the workers after it make of a try that has deferred, however often."""
        while True:
            event = wait(deferred)
            method = getattr(self.operator(), deferred.method_name)
            try:
                return method(self.context, event=event, **(deferred.kwargs or {}))
            except TaskDeferred as again:
                deferred = again

    def follow(self) -> Any:
        """The next try, to its end."""
        found = self.begin()
        return self.resume(found) if isinstance(found, TaskDeferred) else found

    def operator(self) -> DistributedJobOperator:
        """A new one, as each process makes it."""
        job = self._section["job"]
        return DistributedJobOperator(task_id=job, section=self._section, inputs=self._inputs, **self._kwargs)

    @property
    def pod(self) -> str:
        """Name of its pod, or of its training."""
        return self.operator().pod_name(_context(self._run, self._section["job"], 1, self._refresh))


def wait(deferred: TaskDeferred, seconds: float | None = None) -> dict[str, Any]:
    """What the triggerer hears of a deferred try; it has read the trigger from Airflow's database.

    Raises:
        TimeoutError: it was shut down after `seconds`, before anything had happened.
    """
    trigger = _revived(deferred)

    async def first() -> dict[str, Any]:
        return (await anext(trigger.run())).payload

    return asyncio.run(asyncio.wait_for(first(), seconds))


def adopted(
    namespace: Namespace,
    kind: str,
    run: str,
    section: dict[str, Any],
    inputs: dict[str, str] | None = None,
    *,
    begun: Callable[[Namespace, str], None],
) -> tuple[Task, Any]:
    """Kill the worker of a task once its work has begun, and follow the next try, which goes on with what is there.

    Args:
        kind: of the object that does the work, "pod" or "job".
        begun: waits for its work, by its name.

    Returns:
        the task, and the URI that its next try returned.
    """
    task = Task(run, section, inputs)
    arguments = [run, json.dumps(section), json.dumps(inputs)]
    worker = subprocess.Popen([sys.executable, "-m", "tests.kubernetes.task", *arguments], cwd=PROJECT)
    try:
        begun(namespace, task.pod)
    finally:
        worker.kill()
        worker.wait()
    first = namespace.uid(kind, task.pod)
    assert first is not None
    deferred = task.begin()
    assert namespace.uid(kind, task.pod) in (first, None), f"the task had a second {kind}"
    return task, task.resume(deferred) if isinstance(deferred, TaskDeferred) else deferred


def mark_failed(deferred: TaskDeferred) -> None:
    """What the triggerer does once a person has marked a deferred task."""
    asyncio.run(_revived(deferred).on_kill())


def _revived(deferred: TaskDeferred) -> Any:
    path, arguments = deferred.trigger.serialize()
    return import_string(path)(**arguments)


def _context(run: str, task: str, number: int, refresh: bool) -> dict[str, Any]:
    ti = _Ti(
        dag_id="customize", task_id=task, run_id=run, map_index=-1, try_number=number, max_tries=4, xcom={},
        start_date=datetime.now(UTC),
    )  # fmt: skip
    params = {"refresh": [task] if refresh else [], "recipe": "demo/0.8M_lora_cpu"}
    return {"run_id": run, "params": params, "ti": ti, "dag": SimpleNamespace()}


if __name__ == "__main__":
    Task(sys.argv[1], *map(json.loads, sys.argv[2:]), deferrable=False).begin()
