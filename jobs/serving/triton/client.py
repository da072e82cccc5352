"""A client of Triton over gRPC for the canary controller: what is loaded, load, unload, and a real request."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Sequence
from types import TracebackType
from typing import Any, NamedTuple, Self

import grpc
import numpy as np
from tritonclient.grpc import aio
from tritonclient.grpc import service_pb2 as messages_pb2
from tritonclient.utils import InferenceServerException

from include.errors import AnemoneError

READY = "READY"
_POLL_SECONDS = 0.05
_CALL_SECONDS = 10.0
_UNLOAD_SECONDS = 3.0
_CLOSE_SECONDS = 5.0


class TritonError(AnemoneError):
    """Triton refused, or something else failed in it."""


class BadInputError(TritonError):
    """The request is wrong, and no release can answer it."""


class NotAvailableError(TritonError):
    """Triton does not run, or the release is not loaded."""


class TimedOutError(TritonError):
    """No answer in time."""


class Answer(NamedTuple):
    """A whole answer; `finish_reason` is stop or length."""

    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int


class TritonClient:
    """An asynchronous context manager; `address` is host:port of Triton's gRPC service."""

    def __init__(self, address: str) -> None:
        self.address = address

    async def __aenter__(self) -> Self:
        self._client = aio.InferenceServerClient(self.address)
        self._asked: set[asyncio.Task[Any]] = set()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._asked:
            await asyncio.wait(self._asked, timeout=_CLOSE_SECONDS)
        await self._client.close()

    async def live(self) -> bool:
        """Return whether the server answers at all."""
        try:
            return await self._client.is_server_live(client_timeout=_CALL_SECONDS)
        except InferenceServerException:
            return False

    async def states(self) -> dict[str, str]:
        """Return the repository index's READY, LOADING, UNLOADING or UNAVAILABLE, by release.

        A release that was never loaded has the empty state. Only a real request proves that one is READY.
        """
        return {name: state for name, (state, _) in (await self._index()).items()}

    async def load(self, name: str, *, timeout: float = 120.0) -> None:
        """Load a release; do nothing where it is loaded already.

        Args:
            timeout: in seconds.

        Raises:
            TritonError: it does not load; the message ends with Triton's reason.
        """
        if (await self._index()).get(name, ("", ""))[0] == READY:
            return
        try:
            await self._client.load_model(name, client_timeout=timeout)
        except InferenceServerException as error:
            raise _typed(error, f"{name} does not load") from None
        state, reason = (await self._index()).get(name, ("", "it is not in the repository"))
        if state != READY:
            raise TritonError(f"{name} does not load: Triton says {state or 'nothing'} ({reason or 'no reason given'})")

    async def unload(self, name: str, *, timeout: float = 60.0) -> None:
        """Unload a release and wait for that and its requests in flight; do nothing where it is not loaded.

        Raises:
            TimedOutError: it is still there after `timeout` seconds.
        """
        until = time.monotonic() + timeout
        try:
            await self._client.unload_model(name, client_timeout=timeout)
        except InferenceServerException as error:
            # Triton says that it failed to unload a release that it does not know.
            if name in await self._index():
                raise _typed(error, f"{name} does not unload") from None
            return
        while (state := (await self._index()).get(name, ("", ""))[0]) in (READY, "LOADING", "UNLOADING"):
            if time.monotonic() > until:
                raise TimedOutError(f"{name} is still {state} {timeout:g} s after it was asked to unload")
            await asyncio.sleep(_POLL_SECONDS)

    async def reload(self, name: str, *, timeout: float = 120.0) -> None:
        """Replace a process that died, which Triton neither notices nor restarts.

        A request that was given to the dead process stays in flight for Triton, so that the old copy never ends to
        unload; a new one is loaded beside what is left of it (tritonserver 2.51).

        Raises:
            TritonError: it does not load.
        """
        with contextlib.suppress(TimedOutError):
            await self.unload(name, timeout=_UNLOAD_SECONDS)
        await self.load(name, timeout=timeout)

    async def generate(
        self,
        name: str,
        *,
        text: str | None = None,
        messages: Sequence[dict[str, str]] | None = None,
        max_tokens: int | None = None,
        timeout: float = 30.0,
    ) -> Answer:
        """Return the answer to a real, greedy request.

        Args:
            timeout: in seconds.

        Raises:
            BadInputError, NotAvailableError, TimedOutError, TritonError: why there is no answer.
        """
        values = {
            "text_input": text,
            "messages": None if messages is None else json.dumps(list(messages), ensure_ascii=False),
            "max_tokens": max_tokens,
        }
        inputs = [_input(key, value) for key, value in values.items() if value is not None]
        asked = asyncio.create_task(self._only_response(name, inputs))
        self._asked.add(asked)
        asked.add_done_callback(self._ended)
        try:
            async with asyncio.timeout(timeout):
                result = await asyncio.shield(asked)
        except TimeoutError:
            raise TimedOutError(f"{name} gave no answer within {timeout:g} s") from None
        except InferenceServerException as error:
            raise _typed(error, f"{name} gave no answer") from None
        except grpc.aio.AioRpcError as error:
            raise NotAvailableError(f"Triton at {self.address} broke off ({error.details()})") from None

        def value(output: str) -> Any:
            return result.as_numpy(output).ravel()[0]

        return Answer(
            value("text_output").decode(),
            value("finish_reason").decode(),
            int(value("prompt_tokens")),
            int(value("completion_tokens")),
        )

    async def _only_response(self, name: str, inputs: list[aio.InferInput]) -> Any:
        """Return the one response of a stream, which is the only way a decoupled model answers.

        The stream is read to its end, whether anybody still waits for it or not: where one is cancelled, tritonserver
        2.51 may keep its request in flight for ever, and then the release can never be unloaded.
        """

        async def requests() -> AsyncIterator[dict[str, Any]]:
            yield {"model_name": name, "inputs": inputs}

        found, failure = None, None
        async for result, error in self._client.stream_infer(requests()):
            found, failure = found or result, failure or error
        if failure is not None:
            raise failure
        if found is None:
            raise TritonError(f"{name} closed the stream without an answer")
        return found

    def _ended(self, asked: asyncio.Task[Any]) -> None:
        self._asked.discard(asked)
        if not asked.cancelled():
            asked.exception()  # retrieved, or asyncio would warn of one that came after a time-out

    async def _index(self) -> dict[str, tuple[str, str]]:
        try:
            index = await self._client.get_model_repository_index(client_timeout=_CALL_SECONDS)
        except InferenceServerException as error:
            raise _typed(error, f"Triton at {self.address} does not answer") from None
        assert isinstance(index, messages_pb2.RepositoryIndexResponse)
        return {model.name: (model.state, model.reason) for model in index.models}


def _input(name: str, value: str | int) -> aio.InferInput:
    array = np.array([[value.encode()]], np.object_) if isinstance(value, str) else np.array([[value]], np.int32)
    tensor = aio.InferInput(name, [1, 1], "BYTES" if isinstance(value, str) else "INT32")
    tensor.set_data_from_numpy(array)
    return tensor


def _typed(error: InferenceServerException, what: str) -> TritonError:
    message, status = error.message(), error.status() or ""
    if "INVALID_ARGUMENT: " in message:
        return BadInputError(f"{what}: {message.partition('INVALID_ARGUMENT: ')[2]}")
    if "DEADLINE_EXCEEDED" in status:
        return TimedOutError(f"{what}: no answer in time")
    if "UNAVAILABLE" in status or "NOT_FOUND" in status or "unknown model" in message or "is not ready" in message:
        return NotAvailableError(f"{what}: {message}")
    return TritonError(f"{what}: {message}")
