"""What the router costs: time added to a request, CPU a request, requests a second lost.

Run: .anemone/venvs/serving/bin/python tests/benchmarks/router.py   (about two minutes; prints a Markdown table)

Before two upstreams: an echo that answers at once, and a real tritonserver with a tiny engine. Latency: open loop, 150
requests a second with exponential gaps, each sent at random directly, directly once more (the control), or through the
router. CPU: utime + stime of the router's process over the requests it answered.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import frame
import uvloop

from include.artifacts.store import Store
from jobs.serving.triton.repository import install
from tests.jobs.serving.router.conftest import TOKEN, Router
from tests.jobs.serving.router.triton_double import TritonDouble, answer
from tests.jobs.serving.triton.conftest import release, running
from tests.jobs.serving.triton.engine_fixture import commit_engine, make_engine
from tests.ports import free_ports

RATE = 150.0
OPEN_SECONDS = 30.0
CPU_SECONDS = 10.0
CLOSED_SECONDS = 3.0
TURNS = 2
CLIENTS = 32
WARM_UP = 200
BODY = json.dumps({"text_input": "list the pods in staging", "max_tokens": 8}).encode()


class Connection(asyncio.Protocol):
    """A persistent connection that sends one request at a time, with as little overhead as possible."""

    def __init__(self) -> None:
        self._received = b""
        self._done: asyncio.Future[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    async def ask(self, request: bytes) -> None:
        """Send it, and wait until its answer is there whole. Raises RuntimeError where it is no success."""
        self._received = b""
        self._done = asyncio.get_running_loop().create_future()
        self._transport.write(request)  # type: ignore[attr-defined]
        await self._done

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, found, body = self._received.partition(b"\r\n\r\n")
        if not found or self._done is None or self._done.done():
            return
        _, has_length, length = head.lower().partition(b"content-length:")
        # What Triton sends in chunks ends with an empty one.
        if len(body) < int(length.partition(b"\r\n")[0]) if has_length else not body.endswith(b"\r\n0\r\n\r\n"):
            return
        if b" 200 " in head[:20] and b'"error"' not in body:
            self._done.set_result(None)
        else:
            self._done.set_exception(RuntimeError(self._received[:500].decode(errors="replace")))

    def connection_lost(self, error: Exception | None) -> None:
        if self._done is not None and not self._done.done():
            self._done.set_exception(ConnectionError("the connection was closed"))


class Way:
    """A way to the model: where requests go, over a pool of kept connections."""

    def __init__(self, port: int, model: str) -> None:
        self.port = port
        self.seconds: list[float] = []
        self._free: list[Connection] = []
        self._request = (
            f"POST /v2/models/{model}/generate HTTP/1.1\r\nHost: 127.0.0.1\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(BODY)}\r\n\r\n"
        ).encode() + BODY

    async def connection(self) -> Connection:
        if self._free:
            return self._free.pop()
        _, made = await asyncio.get_running_loop().create_connection(Connection, "127.0.0.1", self.port)
        return made

    async def ask(self, due: float) -> None:
        """Send a request of an open loop, timed from when it was due (`time.perf_counter`), however late it is sent."""
        connection = await self.connection()
        await connection.ask(self._request)
        self.seconds.append(time.perf_counter() - due)
        self._free.append(connection)

    async def ask_for(self, seconds: float) -> int:
        """Run one client of a closed loop; return how many answers it got."""
        connection = await self.connection()
        end, number = time.perf_counter() + seconds, 0
        while time.perf_counter() < end:
            await connection.ask(self._request)
            number += 1
        self._free.append(connection)
        return number


@dataclass(frozen=True)
class Figures:
    """Times in milliseconds, rates in requests a second; `cpu` is the router's, a request."""

    added_p50: float
    added_p99: float
    control_p50: float
    control_p99: float
    direct_p50: float
    samples: int
    cpu_open: float
    direct_rate: float
    proxied_rate: float
    cpu_closed: float


async def measure(direct_port: int, direct_model: str, folder: Path) -> Figures:
    (folder / "token").write_text(TOKEN)
    router = Router(folder, *free_ports(2), TritonDouble())
    await router.start(f"http://127.0.0.1:{direct_port}")
    try:
        await router.route(champion=direct_model)
        pid = router.process.pid
        first, second = Way(direct_port, direct_model), Way(direct_port, direct_model)
        proxied = Way(router.port, "kubectl")
        for way in (first, second, proxied):
            await open_loop([way], WARM_UP / 500, 500)
            way.seconds.clear()
        await open_loop([first, second, proxied], OPEN_SECONDS, RATE)
        latencies = [way.seconds.copy() for way in (first, second, proxied)]
        proxied.seconds.clear()
        before = cpu_seconds(pid)
        await open_loop([proxied], CPU_SECONDS, RATE)
        cpu_open = (cpu_seconds(pid) - before) / len(proxied.seconds)
        before = cpu_seconds(pid)
        direct_rates, proxied_rates = zip(
            *[(await closed_loop(first), await closed_loop(proxied)) for _ in range(TURNS)], strict=True
        )
        cpu_closed = (cpu_seconds(pid) - before) / (sum(proxied_rates) * CLOSED_SECONDS)
    finally:
        await router.stop()
    direct, control, through = ([1000 * quantile(times, share) for share in (0.5, 0.99)] for times in latencies)
    return Figures(
        added_p50=through[0] - direct[0],
        added_p99=through[1] - direct[1],
        control_p50=control[0] - direct[0],
        control_p99=control[1] - direct[1],
        direct_p50=direct[0],
        samples=len(latencies[2]),
        cpu_open=1000 * cpu_open,
        direct_rate=statistics.mean(direct_rates),
        proxied_rate=statistics.mean(proxied_rates),
        cpu_closed=1000 * cpu_closed,
    )


async def open_loop(ways: list[Way], seconds: float, rate: float) -> None:
    """Send at random times, whatever is still unanswered, each by a way drawn at random."""
    draw = random.Random(1)
    due = time.perf_counter()
    tasks, end = [], due + seconds
    while (due := due + draw.expovariate(rate)) < end:
        # The loop's timers are good to a millisecond, and can be early.
        while (wait := due - time.perf_counter()) > 0:
            await asyncio.sleep(wait)
        tasks.append(asyncio.create_task(draw.choice(ways).ask(due)))
    await asyncio.gather(*tasks)


async def closed_loop(way: Way) -> float:
    """Requests a second of `CLIENTS` clients that each wait for their answer."""
    answered = await asyncio.gather(*(way.ask_for(CLOSED_SECONDS) for _ in range(CLIENTS)))
    return sum(answered) / CLOSED_SECONDS


def quantile(values: list[float], share: float) -> float:
    return statistics.quantiles(values, n=1000, method="inclusive")[round(1000 * share) - 1]


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Echo(asyncio.Protocol):
    """Answers every request at once with the same answer."""

    _body = json.dumps(answer("kubectl-v1-aaaaaaaa", "list the pods in staging")).encode()
    _response = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (
        len(_body),
        _body,
    )

    def __init__(self) -> None:
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        while True:
            head, found, body = self._received.partition(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0] or 0) if found else 0
            if not found or len(body) < length:
                return
            self._received = body[length:]
            self._transport.write(self._response)  # type: ignore[attr-defined]


async def serve_echo(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Echo, "127.0.0.1", port)
    print("listening", flush=True)
    await server.serve_forever()


@contextmanager
def echo() -> Iterator[int]:
    """Run an echo in a process of its own; yield its port."""
    (port,) = free_ports(1)
    process = subprocess.Popen([sys.executable, __file__, "--echo", str(port)], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        yield port
    finally:
        process.terminate()
        process.wait()


def measure_both(small: bool) -> list[frame.Row]:
    if small:
        global OPEN_SECONDS, CPU_SECONDS, CLOSED_SECONDS
        OPEN_SECONDS = CPU_SECONDS = CLOSED_SECONDS = 2.0
    rows: list[tuple[str, Figures]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with echo() as port:
            (folder / "echo").mkdir()
            rows.append(("echo", uvloop.run(measure(port, "kubectl-v1-aaaaaaaa", folder / "echo"))))
        store = Store(f"file://{folder}/store")
        engine = commit_engine(store, "engine", make_engine(folder / "engine"))
        with running(folder / "serving") as triton:
            model = install(triton.folder, release(engine))
            triton.load(model)
            (folder / "triton").mkdir()
            rows.append(("Triton, a tiny engine", uvloop.run(measure(triton.http, model, folder / "triton"))))
    print(
        f"| upstream | p50 direct, ms | added p50 / p99, ms (control) | samples a way | CPU ms a request, {RATE:g}/s → "
        f"saturated | requests/s at {CLIENTS} clients, direct → routed |\n|---|---|---|---|---|---|"
    )
    for upstream, f in rows:
        print(
            f"| {upstream} | {f.direct_p50:.2f} | {f.added_p50:.2f} / {f.added_p99:.2f} "
            f"({f.control_p50:+.2f} / {f.control_p99:+.2f}) | {f.samples} | {f.cpu_open:.2f} → {f.cpu_closed:.2f} | "
            f"{f.direct_rate:.0f} → {f.proxied_rate:.0f} |"
        )
    print()
    return [line for upstream, found in rows for line in lines(upstream, found)]


def lines(upstream: str, f: Figures) -> list[frame.Row]:
    name = f"router before {upstream}"
    shown = f"{f.samples} requests a way at {RATE:g}/s, open loop; " + frame.versions("aiohttp", "uvloop")
    return [
        frame.figure(f"{name}: time added to a request, p50", [f.added_p50], unit="ms", conditions=shown,
                     control=f.control_p50),
        frame.figure(f"{name}: time added to a request, p99", [f.added_p99], unit="ms",
                     conditions=f"{shown}; direct against direct: {f.control_p99:+.2f} ms"),
        frame.figure(f"{name}: CPU a request", [f.cpu_open], unit="ms", conditions=shown),
        frame.against(f"{name}: requests a second / direct", [f.proxied_rate], [f.direct_rate], unit="/s",
                      more_is_better=True, conditions=f"{CLIENTS} clients, closed loop"),
    ]  # fmt: skip


if __name__ == "__main__":
    if sys.argv[1:2] == ["--echo"]:
        uvloop.run(serve_echo(int(sys.argv[2])))
    else:
        frame.main(__doc__, measure_both)
