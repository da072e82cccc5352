"""Every API of the serving side takes its own token alone, whatever bytes it is sent."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, cast

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from prometheus_client import CollectorRegistry

from jobs.serving.canary.api import make_app
from jobs.serving.router.admin import AdminApi
from jobs.serving.triton.agent import AgentApi

TOKEN = "secret"


def _door(name: str, folder: Path) -> web.Application:
    if name == "controller":
        return make_app(cast(Any, None), TOKEN)
    if name == "router":
        return AdminApi(cast(Any, None), CollectorRegistry(), TOKEN).application()
    return AgentApi(folder, cast(Any, None), TOKEN).application()


@pytest.mark.parametrize("header", [None, b"", b"Bearer", b"Bearer secre", b"Bearer \xff\xfe", "Bearer ä".encode()])
@pytest.mark.parametrize("door", ["controller", "router", "agent"])
def test_any_other_header_is_a_401(door: str, header: bytes | None, tmp_path: Path) -> None:
    async def work() -> bytes:
        async with TestServer(_door(door, tmp_path)) as server:
            assert server.port is not None
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            line = b"" if header is None else b"Authorization: " + header + b"\r\n"
            writer.write(b"GET /state HTTP/1.1\r\nHost: x\r\n" + line + b"\r\n")
            status = await reader.readuntil(b"\r\n")
            writer.close()
            return status

    assert asyncio.run(work()).startswith(b"HTTP/1.1 401 ")
