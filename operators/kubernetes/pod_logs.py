"""The log of a pod's container, read in pieces: each line once, also by processes that take turns."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from aiohttp import ClientError
from airflow.sdk.execution_time.xcom import XCom
from airflow.triggers.base import BaseTrigger
from kubernetes_asyncio.client import ApiClient
from kubernetes_asyncio.client.exceptions import ApiException

from operators.kubernetes.pod_failures import describe_error

CHUNK_BYTES = 2**16

_LONGEST_BYTES = 2**20
"""Of one line; the rest of a longer one is dropped."""

LOG_POSITION = "log_place"
"""XCom of a task: up to where its pod's log was read. Airflow clears it when the next try begins. The task pushes it
before the trigger first asks for it, since Airflow logs an error of its own where an XCom is missing. The key is
version 0.1's: a task may wait during an upgrade."""


class LogReader:
    """Reads a container's log from a position on, in as much memory as one line takes.

    Kubernetes answers from the beginning of a second of kubelet's own clock. Lines that were read before are recognised
    by their timestamp, and by how many lines have the same.

    Args:
        position: up to where another reader has read.
    """

    def __init__(self, position: Mapping[str, Any] | None = None) -> None:
        self._pod: str | None = position["pod"] if position else None
        self._newest = datetime.fromisoformat(position["time"]) if position else None
        self._lines: int = position["lines"] if position else 0
        self._passed, self._again, self._rest = True, 0, b""

    @property
    def position(self) -> dict[str, Any] | None:
        """{"pod": uid, "time": timestamp of the newest line, "lines": that have it}; None before the first line."""
        if self._newest is None:
            return None
        return {"pod": self._pod, "time": self._newest.isoformat(), "lines": self._lines}

    def request(self, pod: Any, container: str) -> dict[str, Any]:
        """Return arguments of either client's `ApiClient.call_api` for the next reading; its response is streamed.

        The generated methods lack sinceTime, and sinceSeconds depends on the clocks of two machines.
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
        """Yield the new lines that the next piece of the response completes."""
        *lines, rest = (self._rest + data).split(b"\n")
        self._rest = rest[:_LONGEST_BYTES]
        for line in lines:
            yield from self._new(line)

    def finish(self) -> Iterator[str]:
        """Yield the last line of a container that has ended without a newline."""
        yield from self._new(self._rest)
        self._rest = b""

    def _new(self, line: bytes) -> Iterator[str]:
        stamp, _, text = line.decode(errors="replace").partition(" ")
        try:
            time = datetime.fromisoformat(stamp)
        except ValueError:
            # Not a line of the log: kubelet's message about one that it cannot read.
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
        yield text


class FollowedLog:
    """The log of a container that a trigger follows; another triggerer continues where this one stopped.

    Args:
        position: up to where the task itself has read.
    """

    def __init__(self, trigger: BaseTrigger, position: Mapping[str, Any] | None = None) -> None:
        self._trigger, self._given = trigger, position
        self._reader: LogReader | None = None

    async def position(self) -> dict[str, Any] | None:
        """Return up to where the log was read (`LogReader.position`)."""
        return (await self._opened()).position

    async def follow(self, client: ApiClient, pod: Any, container: str) -> None:
        """Log the new lines. What cannot be read now is read the next time; the log of a deleted pod is gone."""
        state = next((one.state for one in pod.status.container_statuses or () if one.name == container), None)
        if state is None or (state.running is None and state.terminated is None):
            return
        reader = await self._opened()
        before = reader.position
        try:
            async for line in _new_lines(client, reader, pod, container, ended=state.terminated is not None):
                self._trigger.log.info("%s", line)
        except (ApiException, ClientError, OSError) as error:
            self._trigger.log.warning(
                "the log of pod %s cannot be read now (%s)", pod.metadata.name, describe_error(error)
            )
        finally:
            if reader.position != before:
                await self._store(reader)

    async def _opened(self) -> LogReader:
        if self._reader is None:
            known = [position for position in (self._given, await self._stored()) if position]
            self._reader = LogReader(max(known, key=_order, default=None))
        return self._reader

    async def _stored(self) -> dict[str, Any] | None:
        ti = self._trigger.task_instance
        if ti is None:
            return None
        try:
            return await XCom.aget_one(key=LOG_POSITION, **_key(ti))
        except Exception as error:  # Whatever Airflow's API answers may repeat lines, but not fail the task.
            self._trigger.log.warning("the position in the log is not known (%s): it is read from its start", error)
            return None

    async def _store(self, reader: LogReader) -> None:
        ti = self._trigger.task_instance
        if ti is None:
            return
        try:
            await XCom.aset(key=LOG_POSITION, value=reader.position, **_key(ti))
        except Exception as error:  # As above.
            self._trigger.log.warning("the position in the log could not be stored (%s)", error)


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


def _order(position: Mapping[str, Any]) -> tuple[datetime, int]:
    return datetime.fromisoformat(position["time"]), position["lines"]


def _key(ti: Any) -> dict[str, Any]:
    return {"dag_id": ti.dag_id, "task_id": ti.task_id, "run_id": ti.run_id, "map_index": ti.map_index}
