"""The router as a real process, before a stand-in for Triton."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.jobs.serving.router.triton_double import TritonDouble
from tests.ports import free_ports

TOKEN = "a-token"
CHAMPION, CANARY = "kubectl-v1-aaaaaaaa", "kubectl-v2-bbbbbbbb"


class Router:
    """A running `python -m jobs.serving.router` with one target, `kubectl`, and clients for both its ports."""

    def __init__(self, folder: Path, port: int, admin_port: int, triton: TritonDouble) -> None:
        self.folder = folder
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self.admin_port = admin_port
        self.triton = triton
        self.lines: list[str] = []

    async def start(self, triton_url: str, *options: str) -> None:
        """Start the router; return once it listens."""
        self.process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "jobs.serving.router", "--folder", str(self.folder), "--port", str(self.port)),
            *("--admin-port", str(self.admin_port), "--triton", triton_url, *options),
            stdout=asyncio.subprocess.PIPE,
        )
        assert self.process.stdout is not None
        while line := (await self.process.stdout.readline()).decode():
            self.lines.append(line)
            if line.startswith("started "):
                break
        else:
            pytest.fail(f"the router did not start: {self.lines}")
        self._reading = asyncio.create_task(self._read(self.process.stdout))
        self.session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))

    async def stop(self, number: int = signal.SIGTERM) -> int:
        """End the process and return its exit code."""
        if self.process.returncode is None:
            self.process.send_signal(number)
        code = await self.process.wait()
        await self._reading
        await self.session.close()
        return code

    async def _read(self, stream: asyncio.StreamReader) -> None:
        while line := await stream.readline():
            self.lines.append(line.decode())

    async def admin(self, method: str, path: str, body: Any = None, token: str | None = TOKEN) -> tuple[int, Any]:
        headers = {"Authorization": f"Bearer {token}"} if token is not None else {}
        url = f"http://127.0.0.1:{self.admin_port}{path}"
        async with self.session.request(method, url, json=body, headers=headers) as response:
            return response.status, await response.json()

    async def route(self, *, weight: float = 0.0, holder: str = "me", **fields: Any) -> dict[str, Any]:
        """Put a route of `kubectl` in force; takes the lease for a weight."""
        if weight:
            assert (await self.admin("POST", "/targets/kubectl/lease", {"holder": holder, "seconds": 60}))[0] == 200
        targets = (await self.admin("GET", "/state"))[1]["targets"]
        generation = targets["kubectl"]["generation"] if "kubectl" in targets else 0
        status, state = await self.admin(
            "PUT",
            "/targets/kubectl",
            {"generation": generation, "champion": CHAMPION, "weight": weight, "holder": holder, **fields},
        )
        assert status == 200, state
        return state

    async def weight(self) -> float:
        return (await self.admin("GET", "/state"))[1]["targets"]["kubectl"]["weight"]

    async def counts(self) -> dict[str, Any]:
        """Return the counts of the current period."""
        return (await self.admin("GET", "/targets/kubectl/counts"))[1]["generations"][-1]

    async def samples(self, after: int = 0) -> dict[str, Any]:
        return (await self.admin("GET", f"/targets/kubectl/samples?after={after}"))[1]

    async def post(self, path: str, body: Any, **options: Any) -> tuple[int, Any]:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        async with self.session.post(self.url + path, data=data, **options) as response:
            return response.status, json.loads(await response.read())

    async def ask(self, prompt: str = "list pods", **fields: Any) -> tuple[int, Any]:
        return await self.post("/v1/completions", {"model": "kubectl", "prompt": prompt, **fields})

    async def stream(self, path: str = "/v1/completions", **fields: Any) -> tuple[int, list[Any]]:
        """Status and events of a streamed answer; of one that is none, the body."""
        body = {"model": "kubectl", "prompt": "list pods", "stream": True, **fields}
        async with self.session.post(self.url + path, json=body) as response:
            if response.status != 200:
                return response.status, [await response.json()]
            lines = (await response.read()).decode().split("\n\n")
        return 200, [line[6:] if line == "data: [DONE]" else json.loads(line[6:]) for line in lines if line]


@asynccontextmanager
async def running(folder: Path, *options: str) -> AsyncIterator[Router]:
    """Yield a router with a champion in front of a stand-in for Triton."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "token").write_text(TOKEN)
    triton = TritonDouble()
    router = Router(folder, *free_ports(2), triton)
    triton_port = await triton.start()
    try:
        await router.start(f"http://127.0.0.1:{triton_port}", *options)
        try:
            await router.route()
            yield router
        finally:
            await router.stop()
    finally:
        await triton.stop()


@pytest.fixture
def with_router(tmp_path: Path) -> Callable[..., None]:
    """Run an async test body with a router of its own."""

    def run(body: Callable[[Router], Awaitable[None]], *options: str) -> None:
        async def work() -> None:
            async with asyncio.timeout(60), running(tmp_path, *options) as router:
                await body(router)

        asyncio.run(work())

    return run
