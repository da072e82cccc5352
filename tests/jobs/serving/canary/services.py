"""The real processes: controller, router and tritonserver, with tiny real engines and clients that never stop."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp

from include.artifacts.store import Store
from include.release.rollouts import CanaryPolicy, Drill, Quality, Release, RolloutRequest, RolloutStatus, TargetStatus
from include.specs.base import Artifact
from tests.jobs.serving.triton.engine_fixture import PROMPTS, commit_engine, make_engine
from tests.ports import free_ports

TARGET = "kubectl"
TOKEN = "secret"
POLICY = CanaryPolicy(
    steps=(0.2, 0.5),
    step_seconds=2,
    look_seconds=0.3,
    min_requests=60,
    max_seconds=60,
    baseline_requests=40,
    baseline_seconds=10,
    # A canary as good as the champion is rolled back once in a thousand rollouts: no test hangs on that.
    alpha=1e-3,
    max_bad_rate=0.1,
    # Other suites run on the same cores: how long an answer takes is left to the drills.
    latency_quantile=0.99,
    latency_tolerance=3,
    quality=Quality(golden_prompts=8),
)


class Clients:
    """Asks through the router at a steady rate, whole answers and streams, and counts what went wrong."""

    def __init__(self, port: int, rate: float = 30) -> None:
        self._url = f"http://127.0.0.1:{port}/v1/chat/completions"
        self._rate = rate
        self.sent = 0
        self.failed: list[str] = []

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
        self._asking: set[asyncio.Task[None]] = set()
        self._task = asyncio.create_task(self._flow())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._task.cancel()
        await asyncio.gather(*self._asking)
        await self._session.close()

    async def _flow(self) -> None:
        while self._rate:
            task = asyncio.create_task(self._ask(self.sent))
            self._asking.add(task)
            task.add_done_callback(self._asking.discard)
            self.sent += 1
            await asyncio.sleep(1 / self._rate)

    async def _ask(self, number: int) -> None:
        prompt, stream = PROMPTS[number % len(PROMPTS)], number % 3 == 0
        body = {"model": TARGET, "messages": [{"role": "user", "content": prompt}], "temperature": 0, "stream": stream}
        try:
            async with self._session.post(self._url, json=body) as response:
                text = await response.text()
                if response.status != 200 or '"error"' in text or (stream and "[DONE]" not in text):
                    self.failed.append(f"{response.status}: {text[-300:]}")
        except aiohttp.ClientError as error:
            self.failed.append(repr(error))


@dataclass
class Services:
    """Router, tritonserver and controller as they run on a machine.

    Attributes:
        ports: of the router, its admin API, the controller, and Triton's http, grpc and metrics.
        options: further command-line arguments by service.
        triton_url, admin_url: where the router finds Triton, and the controller the router, if not directly.
    """

    folder: Path
    engines: dict[int, Artifact]
    ports: list[int] = field(default_factory=lambda: free_ports(6))
    options: dict[str, Sequence[str]] = field(default_factory=dict)
    triton_url: str = ""
    admin_url: str = ""
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.admin = f"http://127.0.0.1:{self.ports[1]}"
        self.triton_http = f"http://127.0.0.1:{self.ports[3]}"

    @property
    def router_port(self) -> int:
        return self.ports[0]

    def command(self, name: str) -> list[str]:
        router, admin, controller, http, grpc, metrics = map(str, self.ports)
        triton = self.triton_url or self.triton_http
        arguments = {
            "triton": ["jobs.serving.triton", "--http-port", http, "--grpc-port", grpc, "--metrics-port", metrics],
            "router": ["jobs.serving.router", "--port", router, "--admin-port", admin, "--triton", triton],
            "canary": [
                *("jobs.serving.canary", "serve", "--port", controller, "--router", self.admin_url or self.admin),
                *("--triton", f"127.0.0.1:{grpc}", "--store", f"file://{self.folder}/store"),
            ],
        }[name]
        return [sys.executable, "-m", *arguments, "--folder", str(self.folder), *self.options.get(name, ())]

    def start(self, *names: str) -> None:
        for name in names or ("triton", "router", "canary"):
            with (self.folder / f"{name}.log").open("ab") as log:
                self.processes[name] = subprocess.Popen(self.command(name), stdout=log, stderr=log)

    def kill(self, name: str) -> None:
        self.processes[name].kill()
        self.processes[name].wait()

    def signal(self, name: str, number: signal.Signals) -> None:
        self.processes[name].send_signal(number)

    def stop(self) -> None:
        for process in reversed(self.processes.values()):
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for process in self.processes.values():
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text()

    def request(
        self, version: int, expected: int | None = None, drill: Drill = "none", name: str | None = None, **policy: Any
    ) -> RolloutRequest:
        # A drill misbehaves from the sixth second after it was loaded on: its steps have to last longer than that.
        slower = {} if drill == "none" else {"step_seconds": 5}
        return RolloutRequest(
            id=name or f"release-{version}-{drill}",
            kind="release",
            target=TARGET,
            release=Release(model=TARGET, version=str(version), engine=self.engines[version]),
            expected_champion=str(expected) if expected else None,
            policy=CanaryPolicy(**{**POLICY.model_dump(), **slower, **policy}),
            drill=drill,
        )

    async def call(self, method: str, path: str, body: Any = None, token: str = TOKEN) -> tuple[int, Any]:
        return await self._json(method, f"http://127.0.0.1:{self.ports[2]}{path}", body, token)

    async def route(self) -> dict[str, Any]:
        """The target's route as the router has it."""
        return (await self._json("GET", f"{self.admin}/state", None, TOKEN))[1]["targets"][TARGET]

    async def _json(self, method: str, url: str, body: Any, token: str) -> tuple[int, Any]:
        async with (
            aiohttp.ClientSession(headers={"Authorization": f"Bearer {token}"}) as session,
            session.request(method, url, json=body) as response,
        ):
            return response.status, await response.json()

    async def live(self) -> None:
        async with asyncio.timeout(60):
            while True:
                try:
                    if (await self.call("GET", "/health"))[0] == 200:
                        return
                except aiohttp.ClientError:
                    assert self.processes["canary"].poll() is None, self.log("canary")
                await asyncio.sleep(0.1)

    async def ask(self, request: RolloutRequest) -> None:
        code, document = await self.call("POST", "/rollouts", request.model_dump(mode="json"))
        assert code in (200, 201), document

    async def until(self, rollout: str, true: Callable[[RolloutStatus], Any], seconds: float = 120) -> RolloutStatus:
        status = None
        try:
            async with asyncio.timeout(seconds):
                while True:
                    try:
                        _, document = await self.call("GET", f"/rollouts/{rollout}")
                        status = RolloutStatus.model_validate(document)
                        if true(status):
                            return status
                    except aiohttp.ClientError:
                        pass
                    await asyncio.sleep(0.05)
        except TimeoutError:
            raise AssertionError(f"waited {seconds:g} s for {rollout}\n{self.describe(status)}") from None

    async def ended(self, rollout: str, seconds: float = 120) -> RolloutStatus:
        return await self.until(rollout, lambda status: status.ended, seconds)

    async def roll_out(self, request: RolloutRequest, seconds: float = 120) -> RolloutStatus:
        """Ask for a rollout, and wait for its end."""
        await self.ask(request)
        return await self.ended(request.id, seconds)

    async def target(self) -> TargetStatus:
        return TargetStatus.model_validate((await self.call("GET", f"/targets/{TARGET}"))[1])

    async def until_healthy(self) -> TargetStatus:
        async with asyncio.timeout(60):
            while not (target := await self.target()).healthy:
                await asyncio.sleep(0.2)
            return target

    def describe(self, status: RolloutStatus | None) -> str:
        """Everything that a failed assertion should show."""
        notes = [f"{note.time:%H:%M:%S} {note.state} {note.message}" for note in status.notes] if status else []
        logs = [f"--- {name}\n{self.log(name)[-2500:]}" for name in ("canary", "router")]
        return "\n".join([*(status.reasons if status else ()), *notes, *logs])


def make_engines(folder: Path) -> dict[int, Artifact]:
    """Commit engines of two versions to a store."""
    store = Store(f"file://{folder}/store")
    made = {version: make_engine(folder / str(version), seed=version) for version in (1, 2)}
    return {version: commit_engine(store, f"engine-{version}", files) for version, files in made.items()}


@asynccontextmanager
async def running(services: Services) -> AsyncIterator[Services]:
    """Started, until the context ends."""
    (services.folder / "token").write_text(TOKEN)
    services.start()
    try:
        await services.live()
        yield services
    finally:
        await asyncio.to_thread(services.stop)
