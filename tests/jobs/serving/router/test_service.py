"""The process: how it starts, refuses to, and ends."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from jobs.serving.log import log, log_trace
from jobs.serving.router.routes import Route, RouteFile
from tests.jobs.serving.router.conftest import CHAMPION, TOKEN, Router
from tests.ports import free_ports


def start(folder: Path, *options: str, ports: list[int] | None = None) -> subprocess.CompletedProcess[str]:
    """For cases where it ends by itself."""
    port, admin_port = ports or free_ports(2)
    return subprocess.run(
        [
            *(sys.executable, "-m", "jobs.serving.router", "--folder", str(folder), "--port", str(port)),
            *("--admin-port", str(admin_port), "--triton", "http://127.0.0.1:9", *options),
        ],
        capture_output=True,
        text=True,
        timeout=20,
    )


def test_it_refuses_to_start_without_what_it_needs(tmp_path: Path) -> None:
    ended = start(tmp_path)
    assert ended.returncode == 64 and f"the token cannot be read from {tmp_path}/token" in ended.stderr
    (tmp_path / "token").write_text("\n")
    ended = start(tmp_path)
    assert ended.returncode == 64 and "is empty" in ended.stderr
    (tmp_path / "token").write_text(TOKEN)
    ended = start(tmp_path, "--max-requests", "0")
    assert ended.returncode == 64 and "--max-requests: 0 is not a positive whole number" in ended.stderr
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ended = start(tmp_path, ports=[taken.getsockname()[1], *free_ports(1)])
    assert ended.returncode == 64 and ended.stderr.startswith("error: port ")
    assert len(ended.stderr.strip().splitlines()) == 1
    ended = start(tmp_path, ports=[*free_ports(1), 70_000])
    assert ended.returncode == 64 and "70000 is no port: give a number from 1 to 65535" in ended.stderr
    (tmp_path / "router.json").write_text("{")
    ended = start(tmp_path)
    assert ended.returncode == 65 and "bring one of them back" in ended.stderr


def test_a_second_router_on_the_folder_is_refused(with_router: Callable[..., None], tmp_path: Path) -> None:
    async def body(router: Router) -> None:
        ended = await asyncio.to_thread(start, router.folder)
        assert ended.returncode == 64 and "another router" in ended.stderr
        assert (await router.ask())[0] == 200

    with_router(body)


def test_damaged_routes_do_not_lose_the_champion(with_router: Callable[..., None], tmp_path: Path) -> None:
    file = RouteFile(tmp_path)
    file.write({"kubectl": Route(generation=4, champion=CHAMPION)})
    file.write({"kubectl": Route(generation=5, champion="kubectl-v9")})
    file.path.write_text("")

    async def body(router: Router) -> None:
        # The fixture's own change has followed on what was found.
        assert (await router.admin("GET", "/state"))[1]["targets"]["kubectl"]["generation"] == 5
        assert router.lines[0].startswith("routes_damaged") and "router.json.previous" in router.lines[0]

    with_router(body)


@pytest.mark.parametrize("streaming", [False, True])
def test_asked_to_stop_it_ends_what_it_has_begun(with_router: Callable[..., None], streaming: bool) -> None:
    async def body(router: Router) -> None:
        router.triton.modes[CHAMPION] = "slow"
        asked = [asyncio.create_task(router.stream() if streaming else router.ask()) for _ in range(5)]
        while len(router.triton.asked) < 5:
            await asyncio.sleep(0.01)
        router.process.send_signal(signal.SIGTERM)
        assert [status for status, _ in await asyncio.gather(*asked)] == [200] * 5
        assert await router.process.wait() == 0
        await router._reading
        assert router.lines[-2:] == ["stopping in_flight=5\n", "stopped\n"]

    with_router(body)


def test_what_does_not_end_is_ended(with_router: Callable[..., None]) -> None:
    async def body(router: Router) -> None:
        router.triton.modes[CHAMPION] = "hang"
        asked = asyncio.create_task(router.ask())
        await router.triton.begun.wait()
        router.process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(router.process.wait(), 10) == 0
        (outcome,) = await asyncio.gather(asked, return_exceptions=True)
        assert isinstance(outcome, Exception)

    with_router(body, "--drain-seconds", "0.3")


def test_a_log_that_takes_no_line_is_in_nobodys_way(monkeypatch: pytest.MonkeyPatch) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, os.fdopen(os.dup(full), "w"))
    os.close(full)
    for number in range(1000):
        log("arm_failed", number=number)
    try:
        raise RuntimeError
    except RuntimeError:
        log_trace()


def test_connections_that_say_nothing_are_closed(with_router: Callable[..., None]) -> None:
    async def body(router: Router) -> None:
        silent, slow, idle = [await asyncio.open_connection("127.0.0.1", router.port) for _ in range(3)]
        slow[1].write(b"POST /v1/completions HTTP/1.1\r\nX-Slow: ")
        idle[1].write(b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b" 200 " in await idle[0].readuntil(b"\r\n")
        for reader, writer in (silent, slow, idle):
            await asyncio.wait_for(reader.read(), 5)
            writer.close()
        assert (await router.ask())[0] == 200

    with_router(body, "--idle-seconds", "0.5")


def test_one_connection_too_many_is_told_to_come_again(with_router: Callable[..., None]) -> None:
    async def body(router: Router) -> None:
        held = [await asyncio.open_connection("127.0.0.1", router.port) for _ in range(3)]
        refused = await asyncio.open_connection("127.0.0.1", router.port)
        answer = await asyncio.wait_for(refused[0].read(), 5)
        head, _, document = answer.partition(b"\r\n\r\n")
        assert b" 503 " in head and b"Retry-After: 1" in head
        assert "3 connections are open already" in json.loads(document)["error"]["message"]
        for _, writer in (*held, refused):
            writer.close()
        async with asyncio.timeout(5):
            while (await router.ask())[0] != 200:
                await asyncio.sleep(0.01)
        async with router.session.get(f"http://127.0.0.1:{router.admin_port}/metrics") as response:
            assert re.search(r"^anemone_router_turned_away_total [1-9]", await response.text(), re.MULTILINE)

    with_router(body, "--max-connections", "3")
