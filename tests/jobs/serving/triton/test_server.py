"""Starting, stopping and killing the server."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path

import aiohttp
import pytest

from include.specs.base import Artifact
from jobs.serving.triton.repository import install
from tests.jobs.serving.triton.conftest import Server, chat, command, release, running
from tests.ports import free_ports


def regions(server: Server) -> list[Path]:
    return list(Path("/dev/shm").glob(f"{json.loads((server.folder / 'triton.json').read_text())['region']}*"))


def start(folder: Path, ports: list[int]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(folder, ports), capture_output=True, text=True, timeout=30)


def test_a_taken_port_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = start(tmp_path, [*free_ports(2), port])
    assert done.returncode == 64
    assert done.stderr.startswith(f"error: port {port} on 127.0.0.1, for Triton's metrics, cannot be used")


def test_a_wrong_command_line_is_a_bad_configuration(tmp_path: Path) -> None:
    done = subprocess.run([*command(tmp_path, [1, 2, 3])[:-1], "x"], capture_output=True, text=True, timeout=30)
    assert done.returncode == 64
    assert done.stderr == "error: argument --metrics-port: x is no port: give a number from 1 to 65535\n"


def test_a_folder_has_one_server(server: Server) -> None:
    done = start(server.folder, free_ports(3))
    assert done.returncode == 64
    assert f"already runs on {server.folder} as process {server.process.pid}" in done.stderr


def test_it_listens_on_loopback_only_and_loads_over_grpc_only(server: Server) -> None:
    for port in (server.http, server.grpc, server.metrics):
        with pytest.raises(ConnectionRefusedError), socket.create_connection(("127.0.0.2", port), timeout=5):
            pass

    async def statuses() -> list[int]:
        base = f"http://127.0.0.1:{server.http}/v2"
        async with aiohttp.ClientSession() as session:
            paths = ("repository/index", "repository/models/x/load", "systemsharedmemory/region/a/register")
            found = []
            for path in paths:
                async with session.post(f"{base}/{path}") as response:
                    found.append(response.status)
            async with session.get(f"{base}/health/ready") as response:
                return [*found, response.status]

    assert asyncio.run(statuses()) == [403, 403, 403, 200]


def test_sigterm_lets_requests_in_flight_end(tmp_path: Path, endless: Artifact) -> None:
    name = install(tmp_path, release(endless))
    with running(tmp_path) as server:
        server.load(name)
        begun = threading.Event()
        pieces: list[dict[str, object]] = []

        async def follow() -> None:
            body = chat("pods", max_tokens=4000, stream=True)
            async with (
                aiohttp.ClientSession() as session,
                session.post(server.url(name, "generate_stream"), json=body) as response,
            ):
                async for line in response.content:
                    if line.startswith(b"data: "):
                        pieces.append(json.loads(line[6:]))
                        begun.set()

        reader = threading.Thread(target=lambda: asyncio.run(follow()))
        reader.start()
        assert begun.wait(10)
        server.process.send_signal(signal.SIGTERM)
        reader.join(30)
        assert pieces[-1]["completion_tokens"] == 4000
        assert server.process.wait(30) == 0
        assert not regions(server)


def test_what_a_killed_server_left_is_cleared_at_the_next_start(tmp_path: Path, engine: Artifact) -> None:
    name = install(tmp_path, release(engine))
    with running(tmp_path) as server:
        server.load(name)
        [stub] = server.stubs(name)
        # One that runs notices within two seconds; one that hangs does not.
        os.kill(stub, signal.SIGSTOP)
        server.process.kill()
        server.process.wait()
        left = regions(server)
        assert left
        assert server.stubs(name) == [stub]
    with running(tmp_path) as server:
        assert not any(region.exists() for region in left)
        until = time.monotonic() + 30
        while stub in server.stubs(name) and time.monotonic() < until:
            time.sleep(0.01)
        assert not server.stubs(name)
        assert f"stub process {stub}" in server.log.read_text()
        server.load(name)
        [(status, _)] = server.ask(name, chat("pods"))
        assert status == 200
