"""Ports that are taken, and clients that misbehave.

Given version 1 live under constant traffic from well-behaved clients, who must not notice the others.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import resource
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from aiohttp import web

from tests.faults.scenario import scenario
from tests.faults.serving.conftest import Live
from tests.jobs.serving.canary.services import TARGET, TOKEN, Services

WithLive = Callable[..., None]
Reads = Callable[[str], None]

HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


@scenario(
    given="a machine on which something listens already",
    when="router, controller or Triton is started on a port of it, each of their ports in turn",
    then="it ends with 64 and one sentence that names the port, and listens nowhere else",
)
@pytest.mark.parametrize(
    ("name", "taken"), [("router", 0), ("router", 1), ("canary", 2), ("triton", 3), ("triton", 4), ("triton", 5)]
)
def test_a_port_is_taken(tmp_path: Path, reads: Reads, name: str, taken: int) -> None:
    services = Services(tmp_path, {})
    (tmp_path / "token").write_text(TOKEN)
    with socket.create_server(("127.0.0.1", services.ports[taken])):
        done = subprocess.run(services.command(name), capture_output=True, text=True, timeout=120)
    assert done.returncode == 64, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: port {services.ports[taken]} ")
    for port in services.ports:
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), timeout=5)
    assert not list(tmp_path.glob("router.json*"))
    reads(line)


def memory(services: Services, name: str) -> float:
    """Resident, in MB."""
    status = Path(f"/proc/{services.processes[name].pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


async def connect(services: Services) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", services.router_port)


@scenario(
    given="a limit of two seconds on what a client takes",
    when="twenty clients ask for streams without end, and never read them",
    then="each is given up, Triton is told to stop, the router's memory grows by less than 10 MB a client",
)
def test_streams_that_are_never_read(with_live: WithLive, reads: Reads) -> None:
    async def body(live: Live) -> None:
        services = live.services
        given_up = asyncio.Semaphore(0)

        async def flood(request: web.Request) -> web.StreamResponse | None:
            if b"flood" not in await request.read():
                return None
            response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
            await response.prepare(request)
            piece = {"text_output": "x" * 10_000, "finish_reason": "", "prompt_tokens": 7, "completion_tokens": 1}
            try:
                while True:
                    await response.write(b"data: " + json.dumps(piece).encode() + b"\n\n")
            except (ConnectionError, asyncio.CancelledError):
                given_up.release()
                raise

        live.router_to_triton.spoil = flood
        before = memory(services, "router")
        asked = json.dumps({"model": TARGET, "prompt": "flood", "stream": True}).encode()
        writers = []
        for _ in range(20):
            _, writer = await asyncio.open_connection("127.0.0.1", services.router_port, limit=1)
            writer.write(HEAD + b"Content-Length: %d\r\n\r\n" % len(asked) + asked)
            writers.append(writer)
        async with asyncio.timeout(60):
            for _ in writers:
                await given_up.acquire()
        grown = memory(services, "router") - before
        # What the kernel took for a client (its socket buffers grow to about 10 MB) the router has kept as a sample.
        assert grown < 10 * len(writers)
        for writer in writers:
            writer.close()
        await live.serves(1)
        await live.nobody_noticed()
        reads(f"all 20 given up, {grown:.0f} MB more")

    with_live(body, router=("--write-seconds", "2"))


@scenario(
    given="a limit of 1 MB on a request's body",
    when="a client sends 50 MB, announced or in chunks",
    then="it is refused with 413, and the router's memory grows by less than 20 MB",
)
@pytest.mark.parametrize("announced", [True, False])
def test_a_body_of_50_mb(with_live: WithLive, reads: Reads, announced: bool) -> None:
    async def body(live: Live) -> None:
        services = live.services
        before = memory(services, "router")
        reader, writer = await connect(services)
        block = b"x" * 65536
        writer.write(HEAD + (b"Content-Length: 52428800" if announced else b"Transfer-Encoding: chunked") + b"\r\n\r\n")

        async def send() -> None:
            with contextlib.suppress(ConnectionError):
                for _ in range(800):
                    writer.write(block if announced else b"10000\r\n" + block + b"\r\n")
                    await writer.drain()

        sending = asyncio.create_task(send())
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 30)
        assert b" 413 " in head.splitlines()[0]
        length = int(head.lower().partition(b"content-length:")[2].split()[0])
        reads(json.loads(await reader.readexactly(length))["error"]["message"])
        await sending
        writer.close()
        assert memory(services, "router") - before < 20
        await live.nobody_noticed()

    with_live(body)


@scenario(
    given="connections may be idle for two seconds",
    when="300 clients send a header byte by byte, or nothing at all (slow loris)",
    then="all are closed within seconds, and nobody else notices",
)
def test_slow_loris(with_live: WithLive, reads: Reads) -> None:
    async def body(live: Live) -> None:
        services = live.services
        loop = asyncio.get_running_loop()
        began = loop.time()

        async def dawdle(number: int) -> None:
            reader, writer = await connect(services)

            async def drip() -> None:
                with contextlib.suppress(ConnectionError):
                    for byte in HEAD * 10:
                        writer.write(bytes([byte]))
                        await writer.drain()
                        await asyncio.sleep(0.2)

            dripping = asyncio.create_task(drip()) if number % 2 else None
            with contextlib.suppress(ConnectionError):
                await reader.read()
            if dripping is not None:
                dripping.cancel()
            writer.close()

        async with asyncio.timeout(30):
            await asyncio.gather(*(dawdle(number) for number in range(300)))
        await live.nobody_noticed()
        reads(f"all 300 closed after {loop.time() - began:.1f} s")

    with_live(body, router=("--idle-seconds", "2"))


@scenario(
    given="room for 2,000 connections",
    when="up to 10,000 are opened at once, and stay open",
    then="2,000 are held, others are told to come again or closed, who is connected is served, and all are afterwards",
)
def test_ten_thousand_connections(with_live: WithLive, reads: Reads) -> None:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    number = min(10_000, soft - 1000)
    if number < 3_000:
        pytest.skip(f"this process may have {soft} files open only")

    async def body(live: Live) -> None:
        services = live.services
        known, known_writer = await connect(services)
        gate = asyncio.Semaphore(100)
        told: list[bytes] = []
        held: list[asyncio.StreamWriter] = []

        async def one() -> None:
            async with gate:
                reader, writer = await connect(services)
                held.append(writer)
                with contextlib.suppress(TimeoutError, ConnectionError):
                    told.append(await asyncio.wait_for(reader.read(400), 1.0))

        async with asyncio.timeout(150):
            await asyncio.gather(*(one() for _ in range(number)))
        refusals = [answer for answer in told if b" 503 " in answer and b"connections are open already" in answer]
        assert refusals
        files = len(list(Path(f"/proc/{services.processes['router'].pid}/fd").iterdir()))
        assert files < 2_600
        # Who was connected before is served in the midst of it.
        asked = json.dumps({"model": TARGET, "prompt": "x"}).encode()
        known_writer.write(HEAD + b"Content-Length: %d\r\n\r\n" % len(asked) + asked)
        assert b" 200 " in await asyncio.wait_for(known.readuntil(b"\r\n"), 30)
        for writer in (*held, known_writer):
            writer.close()
        await live.serves(1)
        explained = ("connections are open", "Disconnected", "reset")
        assert all(any(word in failed for word in explained) for failed in live.clients.failed)
        live.clients.failed.clear()
        await live.nobody_noticed()
        reads(json.loads(refusals[0].partition(b"\r\n\r\n")[2])["error"]["message"])

    with_live(body, router=("--max-connections", "2000"))
