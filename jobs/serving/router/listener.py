"""The listener for clients: it takes as many connections as the process may hold, and refuses the others over HTTP."""

from __future__ import annotations

import asyncio
import json
import resource
from collections.abc import Callable
from typing import cast

from aiohttp import web

from jobs.serving.router import openai_protocol
from jobs.serving.router.errors import RequestError
from jobs.serving.router.limits import Limits

BACKLOG = 1024
_SPARE_FILES = 256
"""For files, and for connections that are being refused."""

_LINGER_SECONDS = 1.0
_MAX_LINGERING = 128


def allow_connections(limits: Limits) -> int:
    """Return how many clients' connections can be held, at most `limits.connections`.

    The process's own limit on open files is raised where that is allowed. Each request that is being answered needs a
    connection to Triton as well; a request of many rows needs several.
    """
    needed = limits.connections + 2 * limits.requests + _SPARE_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft == resource.RLIM_INFINITY:
        return limits.connections
    return max(1, min(limits.connections, soft - 2 * limits.requests - _SPARE_FILES))


class LimitedSite(web.BaseSite):
    """A site that holds at most `limit` connections; `refuse` makes the error that the next one gets."""

    def __init__(
        self, runner: web.AppRunner, host: str, port: int, *, limit: int, refuse: Callable[[str], RequestError]
    ) -> None:
        super().__init__(runner)
        self._host = host
        self._port = port
        self._limit = limit
        self._refuse = refuse

    @property
    def name(self) -> str:
        return f"http://{self._host}:{self._port}"

    async def start(self) -> None:
        """Start to listen. Raises OSError where the port cannot be used."""
        await super().start()
        server = self._runner.server
        assert server is not None

        lingering: set[asyncio.BaseTransport] = set()

        def connection() -> asyncio.BaseProtocol:
            if len(server.connections) < self._limit:
                return server()
            return _Refusal(self._refuse(f"{self._limit} connections are open already"), lingering)

        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(connection, self._host, self._port, backlog=BACKLOG)


class _Refusal(asyncio.Protocol):
    """A connection that gets an error whatever it asks; where many are being refused, it is closed at once."""

    def __init__(self, problem: RequestError, lingering: set[asyncio.BaseTransport]) -> None:
        self._problem = problem
        self._lingering = lingering

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport = self._transport = cast(asyncio.Transport, transport)
        if len(self._lingering) >= _MAX_LINGERING:
            transport.abort()
            return
        self._lingering.add(transport)
        body = json.dumps(openai_protocol.error(self._problem)).encode()
        transport.write(
            f"HTTP/1.1 {self._problem.status} Service Unavailable\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\nRetry-After: {self._problem.retry_after}\r\n"
            "Connection: close\r\n\r\n".encode()
            + body
        )
        # Closed at once, with its request unread, the connection would be reset and the answer lost.
        transport.write_eof()
        asyncio.get_running_loop().call_later(_LINGER_SECONDS, transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        self._lingering.discard(self._transport)
