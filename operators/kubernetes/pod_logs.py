"""The log of a pod's container, read piece by piece: each line once, also by processes that take turns at it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from aiohttp import ClientError
from airflow.sdk.execution_time.xcom import XCom
from airflow.triggers.base import BaseTrigger
from kubernetes_asyncio.client import ApiClient
from kubernetes_asyncio.client.exceptions import ApiException

CHUNK_BYTES = 2**16

_LONGEST_BYTES = 2**20
"""Of one line; what it has beyond is dropped."""

LOG_PLACE = "log_place"
"""XCom of a task: where the reading of its pod's log stands. Airflow clears it when the next try begins. There before
the trigger first asks for it, since Airflow writes an error into its own log where an XCom is missing."""


class LogReader:
    """Reads a container's log on from where somebody stopped, in as much memory as one line takes.

    Kubernetes is asked for what was written since a second, by kubelet's own clock, and answers from that second's
    begin; what was read before is told by its time and by how many lines carry it.

    Args:
        place: where another reader stood.
    """

    def __init__(self, place: Mapping[str, Any] | None = None) -> None:
        self._pod: str | None = place["pod"] if place else None
        self._newest = datetime.fromisoformat(place["time"]) if place else None
        self._lines: int = place["lines"] if place else 0
        self._passed, self._again, self._rest = True, 0, b""

    @property
    def place(self) -> dict[str, Any] | None:
        """Where the reading stands, as JSON holds it; None before the first line."""
        if self._newest is None:
            return None
        return {"pod": self._pod, "time": self._newest.isoformat(), "lines": self._lines}

    def request(self, pod: Any, container: str) -> dict[str, Any]:
        """The next reading: arguments of either client's `ApiClient.call_api`; its response is to be streamed.

        The generated methods lack sinceTime, and sinceSeconds rests on the clocks of two machines.
        """
        if self._pod != pod.metadata.uid:
            self._pod, self._newest, self._lines = pod.metadata.uid, None, 0
        self._passed, self._again, self._rest = self._newest is None, 0, b""
        query = [("container", container), ("timestamps", "true")]
        if self._newest is not None:
            query.append(("sinceTime", f"{self._newest.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"))
        return {
            "resource_path": "/api/v1/namespaces/{namespace}/pods/{name}/log",
            "method": "GET",
            "path_params": {"namespace": pod.metadata.namespace, "name": pod.metadata.name},
            "query_params": query,
            "header_params": {"Accept": "*/*"},
            "auth_settings": ["BearerToken"],
            "response_types_map": {},
            "_return_http_data_only": True,
            "_preload_content": False,
        }

    def take(self, data: bytes) -> Iterator[str]:
        """The lines that the next piece of the response ends, those that were read before left out."""
        *lines, rest = (self._rest + data).split(b"\n")
        self._rest = rest[:_LONGEST_BYTES]
        for line in lines:
            yield from self._new(line)

    def finish(self) -> Iterator[str]:
        """The last line of a container that has ended without ending it."""
        yield from self._new(self._rest)
        self._rest = b""

    def _new(self, line: bytes) -> Iterator[str]:
        stamp, _, words = line.decode(errors="replace").partition(" ")
        try:
            time = datetime.fromisoformat(stamp)
        except ValueError:
            # Not of the log: kubelet's own word on one that it cannot read.
            return
        if not self._passed and self._newest is not None:
            self._again += time == self._newest
            if time < self._newest or (time == self._newest and self._again <= self._lines):
                return
            self._passed = True
        if self._newest is None or time > self._newest:
            self._newest, self._lines = time, 1
        elif time == self._newest:
            self._lines += 1
        yield words


class FollowedLog:
    """The log of a container that a trigger follows; the triggerer that takes its place goes on where this one was.

    Args:
        place: where the task itself has read to.
    """

    def __init__(self, trigger: BaseTrigger, place: Mapping[str, Any] | None = None) -> None:
        self._trigger, self._given = trigger, place
        self._reader: LogReader | None = None

    async def place(self) -> dict[str, Any] | None:
        """Where the reading stands."""
        return (await self._begun()).place

    async def follow(self, client: ApiClient, pod: Any, container: str) -> None:
        """Log what is new. What cannot be read now is read the next time; where the pod is gone, so is its log."""
        state = next((one.state for one in pod.status.container_statuses or () if one.name == container), None)
        if state is None or (state.running is None and state.terminated is None):
            return
        reader = await self._begun()
        before = reader.place
        try:
            async for line in _new_lines(client, reader, pod, container, ended=state.terminated is not None):
                self._trigger.log.info("%s", line)
        except (ApiException, ClientError, OSError) as error:
            self._trigger.log.warning("the log of pod %s cannot be read now (%s)", pod.metadata.name, error)
        finally:
            if reader.place != before:
                await self._remember(reader)

    async def _begun(self) -> LogReader:
        if self._reader is None:
            known = [place for place in (self._given, await self._recalled()) if place]
            self._reader = LogReader(max(known, key=_order, default=None))
        return self._reader

    async def _recalled(self) -> dict[str, Any] | None:
        ti = self._trigger.task_instance
        if ti is None:
            return None
        try:
            return await XCom.aget_one(key=LOG_PLACE, **_key(ti))
        except Exception as error:  # Whatever Airflow's API answers costs lines that are read twice, not the task.
            self._trigger.log.warning("where the log was read to is not known (%s): it is read from its start", error)
            return None

    async def _remember(self, reader: LogReader) -> None:
        ti = self._trigger.task_instance
        if ti is None:
            return
        try:
            await XCom.aset(key=LOG_PLACE, value=reader.place, **_key(ti))
        except Exception as error:  # As above.
            self._trigger.log.warning("where the log was read to could not be kept (%s)", error)


async def _new_lines(
    client: ApiClient, reader: LogReader, pod: Any, container: str, *, ended: bool
) -> AsyncIterator[str]:
    response = await client.call_api(**reader.request(pod, container))
    async with response:
        if response.status >= 400:
            raise ApiException(status=response.status, reason=response.reason)
        async for data in response.content.iter_chunked(CHUNK_BYTES):
            for line in reader.take(data):
                yield line
    if ended:
        for line in reader.finish():
            yield line


def _order(place: Mapping[str, Any]) -> tuple[datetime, int]:
    return datetime.fromisoformat(place["time"]), place["lines"]


def _key(ti: Any) -> dict[str, Any]:
    return {"dag_id": ti.dag_id, "task_id": ti.task_id, "run_id": ti.run_id, "map_index": ti.map_index}
