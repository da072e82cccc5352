"""A real tritonserver on free ports, with tiny real engines."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
import pytest

from include.artifacts.store import Store
from include.release.rollouts import Release
from include.specs.base import Artifact
from jobs.serving.triton.client import TritonClient
from tests.jobs.serving.triton.engine_fixture import commit_engine, make_engine
from tests.ports import free_ports

T = TypeVar("T")


@dataclass
class Server:
    """A running `python -m jobs.serving.triton`."""

    folder: Path
    http: int
    grpc: int
    metrics: int
    process: subprocess.Popen[bytes]
    log: Path

    def use(self, work: Callable[[TritonClient], Awaitable[T]]) -> T:
        """Run `work` with a client."""

        async def run() -> T:
            async with TritonClient(f"127.0.0.1:{self.grpc}") as client:
                return await work(client)

        return asyncio.run(run())

    def load(self, *names: str) -> None:
        async def work(client: TritonClient) -> None:
            for name in names:
                await client.load(name)

        self.use(work)

    def url(self, name: str, verb: str = "generate") -> str:
        return f"http://127.0.0.1:{self.http}/v2/models/{name}/{verb}"

    def ask(self, name: str, *requests: dict[str, Any]) -> list[tuple[int, dict[str, Any]]]:
        """Status and body of whole answers, asked for all at once."""

        async def one(session: aiohttp.ClientSession, request: dict[str, Any]) -> tuple[int, dict[str, Any]]:
            async with session.post(self.url(name), json=request) as response:
                return response.status, json.loads(await response.text())

        return self._all(one, requests)

    def stream(self, name: str, *requests: dict[str, Any]) -> list[list[dict[str, Any]]]:
        """Return the pieces of streamed answers, requested all at once."""

        async def one(session: aiohttp.ClientSession, request: dict[str, Any]) -> list[dict[str, Any]]:
            body = {**request, "stream": True}
            async with session.post(self.url(name, "generate_stream"), json=body) as response:
                return [json.loads(line[6:]) async for line in response.content if line.startswith(b"data: ")]

        return self._all(one, requests)

    def stubs(self, name: str) -> list[int]:
        """Processes that run a release of this server's folder."""
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                arguments = (process / "cmdline").read_bytes()
            except OSError:
                continue
            if f"{self.folder}/models/{name}/1/model.py".encode() in arguments:
                found.append(int(process.name))
        return found

    def _all(self, one: Callable[..., Awaitable[T]], requests: tuple[dict[str, Any], ...]) -> list[T]:
        async def run() -> list[T]:
            connector = aiohttp.TCPConnector(limit=0, force_close=True)
            async with aiohttp.ClientSession(connector=connector) as session:
                return await asyncio.gather(*(one(session, request) for request in requests))

        return asyncio.run(run())


def command(folder: Path, ports: list[int]) -> list[str]:
    named = zip(("--http-port", "--grpc-port", "--metrics-port"), map(str, ports), strict=True)
    options = [part for pair in named for part in pair]
    return [sys.executable, "-m", "jobs.serving.triton", "--folder", str(folder), *options]


@contextmanager
def running(folder: Path) -> Iterator[Server]:
    """Start a server, wait until it lives, and end it by its own pid."""
    folder.mkdir(parents=True, exist_ok=True)
    ports = free_ports(3)
    log = folder / "log"
    with log.open("ab") as output:
        process = subprocess.Popen(command(folder, ports), stdout=output, stderr=output)
    server = Server(folder, *ports, process, log)

    async def lives(client: TritonClient) -> bool:
        until = time.monotonic() + 30
        while not await client.live():
            assert process.poll() is None and time.monotonic() < until, log.read_text()
            await asyncio.sleep(0.05)
        return True

    try:
        assert server.use(lives)
        yield server
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
        process.wait()


@pytest.fixture(scope="session")
def engine_store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(f"file://{tmp_path_factory.mktemp('engines')}/store")


@pytest.fixture(scope="session")
def engine_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_engine(tmp_path_factory.mktemp("engine") / "files", seed=1)


@pytest.fixture(scope="session")
def engine(engine_store: Store, engine_folder: Path) -> Artifact:
    """An engine whose answers end by themselves."""
    return commit_engine(engine_store, "engine-1", engine_folder)


@pytest.fixture(scope="session")
def endless(engine_store: Store, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """An engine whose answers go on to 4,000 tokens."""
    return commit_engine(engine_store, "engine-endless", make_engine(tmp_path_factory.mktemp("e") / "f", ends=False))


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(tmp_path_factory.mktemp("serving")) as server:
        yield server


def release(engine: Artifact, version: int = 1) -> Release:
    return Release(model="kubectl", version=str(version), engine=engine)


def chat(prompt: str, **more: Any) -> dict[str, Any]:
    """Return a request with one message of the user's."""
    return {"messages": json.dumps([{"role": "user", "content": prompt}]), **more}
