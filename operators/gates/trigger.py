"""The trigger that waits for the artifact that a gate judges."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from airflow.triggers.base import BaseTrigger, TriggerEvent

from include.artifacts.store import Store
from include.errors import TryAgainError
from operators.store import store_of


class ArtifactTrigger(BaseTrigger):
    """Fires once the artifact at `uri` is committed."""

    def __init__(self, *, uri: str, poll_seconds: float = 5.0) -> None:
        super().__init__()
        self.uri = uri
        self.poll_seconds = poll_seconds

    def serialize(self) -> tuple[str, dict[str, Any]]:
        return "operators.gates.trigger.ArtifactTrigger", {"uri": self.uri, "poll_seconds": self.poll_seconds}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        store, name = store_of(self.uri)
        while not await asyncio.to_thread(self._committed, store, name):
            await asyncio.sleep(self.poll_seconds)
        yield TriggerEvent({"artifact": self.uri})

    def _committed(self, store: Store, name: str) -> bool:
        try:
            return store.manifest(name) is not None
        except TryAgainError as error:
            self.log.warning("%s", error)
            return False
