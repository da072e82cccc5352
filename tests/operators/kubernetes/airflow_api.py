"""As much of Airflow as tasks and triggers need: a task's context, and XComs by Airflow's own messages."""

from __future__ import annotations

from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk.execution_time import task_runner
from airflow.sdk.execution_time.comms import GetXCom, SetXCom, XComResult

TI = SimpleNamespace(dag_id="customize", task_id="finetune", run_id="manual__1", map_index=-1)


class AirflowPeer:
    """Attributes: xcoms: value by key, as they go over the wire. away: what answers instead, if anything."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.xcoms: dict[str, Any] = {}
        self.away: Exception | None = None
        monkeypatch.setattr(task_runner, "SUPERVISOR_COMMS", self, raising=False)

    async def asend(self, message: SetXCom | GetXCom) -> XComResult | None:
        if self.away is not None:
            raise self.away
        assert (message.dag_id, message.task_id, message.run_id) == (TI.dag_id, TI.task_id, TI.run_id)
        if isinstance(message, SetXCom):
            self.xcoms[message.key] = message.value
            return None
        return XComResult(key=message.key, value=self.xcoms.get(message.key))


class TaskInstance(SimpleNamespace):
    """A task instance that keeps what is pushed, as `xcom`."""

    def xcom_push(self, key: str, value: Any) -> None:
        self.xcom[key] = value


def task_context(task_id: str, *, try_number: int = 1, **params: Any) -> dict[str, Any]:
    """Return the context of one try, of five, of a task of `customize`."""
    ti = TaskInstance(
        dag_id="customize",
        task_id=task_id,
        run_id="manual__1",
        map_index=-1,
        try_number=try_number,
        max_tries=4,
        xcom={},
        start_date=datetime.now(UTC),
    )
    return {"run_id": "manual__1", "params": {"refresh": [], **params}, "ti": ti, "dag": SimpleNamespace()}
