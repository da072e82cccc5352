"""As much of what is behind a triggerer as a trigger asks of it: it keeps XComs, by Airflow's own messages."""

from __future__ import annotations

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
