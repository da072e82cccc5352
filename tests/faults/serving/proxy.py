"""A proxy between two services, which passes everything on except where a test spoils it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Self

import aiohttp
from aiohttp import web

Spoil = Callable[[web.Request], Awaitable[web.StreamResponse | None]]


class Proxy:
    """Listens on `port`, and passes requests on to the service at `behind`.

    Attributes:
        spoil: called with each request first; what it returns is the answer, None lets the request through.
        spoilt: number of requests that it answered.
    """

    def __init__(self, port: int, behind: str) -> None:
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self.spoil: Spoil | None = None
        self.spoilt = 0
        self._behind = behind

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
        application = web.Application(client_max_size=64 * 1024 * 1024)
        application.router.add_route("*", "/{path:.*}", self._pass)
        self._runner = web.AppRunner(application, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port).start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._runner.cleanup()
        await self._session.close()

    async def _pass(self, request: web.Request) -> web.StreamResponse:
        if self.spoil is not None and (spoilt := await self.spoil(request)) is not None:
            self.spoilt += 1
            return spoilt
        headers = {name: value for name, value in request.headers.items() if name in ("Authorization", "Content-Type")}
        url = self._behind + request.path_qs
        try:
            async with self._session.request(request.method, url, data=await request.read(), headers=headers) as answer:
                response = web.StreamResponse(status=answer.status, headers={"Content-Type": answer.content_type})
                await response.prepare(request)
                async for chunk in answer.content.iter_any():
                    await response.write(chunk)
                return response
        except aiohttp.ClientError:
            return web.Response(status=502)


async def broken_off(request: web.Request, *begun: bytes) -> web.StreamResponse:
    """Begin a stream, then break its connection."""
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    for chunk in begun:
        await response.write(chunk)
    assert request.transport is not None
    request.transport.abort()
    return response
