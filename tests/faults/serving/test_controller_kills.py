"""The real processes: controller, router and tritonserver, with tiny real engines and clients that never stop."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp
import pytest

from include.artifacts.store import Store
from include.rollouts import CanaryPolicy, Drill, Quality, Release, RolloutRequest, RolloutStatus, TargetStatus
from include.specs.base import Artifact
from tests.jobs.triton.conftest import free_ports
from tests.jobs.triton.engine_fixture import PROMPTS, commit_engine, make_engine

TARGET = "kubectl"
TOKEN = "secret"
POLICY = CanaryPolicy(
    steps=(0.2, 0.5),
    step_seconds=3,
    look_seconds=0.5,
    min_requests=100,
    max_seconds=60,
    baseline_requests=60,
    baseline_seconds=15,
    max_bad_rate=0.05,
    # Other suites run on the same cores: how long an answer takes is left to the drills.
    latency_quantile=0.99,
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
        while True:
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
    """Router, tritonserver and controller as they run on a machine."""

    folder: Path
    engines: dict[int, Artifact]
    ports: list[int] = field(default_factory=lambda: free_ports(6))
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def router_port(self) -> int:
        return self.ports[0]

    def start(self, *names: str) -> None:
        router, admin, controller, http, grpc, metrics = map(str, self.ports)
        folder, store = str(self.folder), f"file://{self.folder}/store"
        commands = {
            "triton": ["jobs.triton", "--http-port", http, "--grpc-port", grpc, "--metrics-port", metrics],
            "router": ["jobs.router", "--port", router, "--admin-port", admin, "--triton", f"http://127.0.0.1:{http}"],
            "canary": [
                *("jobs.canary", "serve", "--port", controller, "--router", f"http://127.0.0.1:{admin}"),
                *("--triton", f"127.0.0.1:{grpc}", "--store", store),
            ],
        }
        for name in names or commands:
            with (self.folder / f"{name}.log").open("ab") as log:
                self.processes[name] = subprocess.Popen(
                    [sys.executable, "-m", *commands[name], "--folder", folder], stdout=log, stderr=log
                )

    def kill(self, name: str) -> None:
        self.processes[name].kill()
        self.processes[name].wait()

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

    def request(self, version: int, expected: int | None = None, drill: Drill = "none", **more: Any) -> RolloutRequest:
        return RolloutRequest(
            id=f"release-{version}-{drill}",
            kind="release",
            target=TARGET,
            release=Release(model=TARGET, version=str(version), engine=self.engines[version]),
            expected_champion=str(expected) if expected else None,
            policy=CanaryPolicy(**{**POLICY.model_dump(), **more}),
            drill=drill,
        )

    async def call(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        async with (
            aiohttp.ClientSession(headers={"Authorization": f"Bearer {TOKEN}"}) as session,
            session.request(method, f"http://127.0.0.1:{self.ports[2]}{path}", json=body) as response,
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

    async def until(self, rollout: str, true: Any, seconds: float = 120) -> RolloutStatus:
        async with asyncio.timeout(seconds):
            while True:
                try:
                    _, document = await self.call("GET", f"/rollouts/{rollout}")
                    status = RolloutStatus.model_validate(document)
                    if true(status):
                        return status
                except aiohttp.ClientError:
                    pass
                await asyncio.sleep(0.1)

    async def lead(self, request: RolloutRequest) -> RolloutStatus:
        code, document = await self.call("POST", "/rollouts", request.model_dump(mode="json"))
        assert code in (200, 201), document
        return await self.until(request.id, lambda status: status.ended)

    async def target(self) -> TargetStatus:
        return TargetStatus.model_validate((await self.call("GET", f"/targets/{TARGET}"))[1])

    async def until_healthy(self) -> TargetStatus:
        async with asyncio.timeout(60):
            while not (target := await self.target()).healthy:
                await asyncio.sleep(0.2)
            return target


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Artifact]:
    folder = tmp_path_factory.mktemp("engines")
    store = Store(f"file://{folder}/store")
    made = {version: make_engine(folder / str(version), seed=version) for version in (1, 2)}
    return {version: commit_engine(store, f"engine-{version}", files) for version, files in made.items()}


@contextmanager
def running(folder: Path, engines: dict[int, Artifact]) -> Iterator[Services]:
    (folder / "token").write_text(TOKEN)
    services = Services(folder, engines)
    services.start()
    try:
        asyncio.run(services.live())
        yield services
    finally:
        services.stop()


@pytest.fixture
def services(tmp_path: Path, engines: dict[int, Artifact]) -> Iterator[Services]:
    with running(tmp_path, engines) as services:
        yield services


@pytest.fixture(scope="module")
def idle(tmp_path_factory: pytest.TempPathFactory, engines: dict[int, Artifact]) -> Iterator[Services]:
    """Services that tests leave as they found them: nothing is live."""
    with running(tmp_path_factory.mktemp("idle"), engines) as services:
        yield services


def _passed(status: RolloutStatus, outcome: str, services: Services) -> None:
    notes = "\n".join(f"{note.time:%H:%M:%S} {note.state} {note.message}" for note in status.notes)
    assert status.outcome == outcome, f"{status.reasons}\n{notes}\n{services.log('canary')[-3000:]}"


def test_released_promoted_drilled_rolled_back_and_forward_while_clients_never_notice(services):
    async def work() -> Clients:
        _passed(await services.lead(services.request(1)), "promoted", services)
        async with Clients(services.router_port) as clients:
            promoted = await services.lead(services.request(2, 1))
            _passed(promoted, "promoted", services)
            assert promoted.figures["canary_requests"] >= 100
            drilled = await services.lead(services.request(1, 2, "failing", max_seconds=40))
            _passed(drilled, "rolled_back", services)
            began = time.monotonic()
            back = await services.lead(RolloutRequest(id="back", kind="rollback", target=TARGET))
            assert time.monotonic() - began < 10
            _passed(back, "promoted", services)
            assert back.champion.release.version == "1"
            forth = await services.lead(RolloutRequest(id="forth", kind="rollback", target=TARGET, version="2"))
            _passed(forth, "promoted", services)
        assert (await services.until_healthy()).champion.release.version == "2"
        for status in (promoted, drilled):
            replayed = subprocess.run(
                [sys.executable, "-m", "jobs.canary", "replay", status.evidence], capture_output=True, text=True
            )
            assert replayed.returncode == 0, replayed.stderr
            assert "every decision the same" in replayed.stdout
        return clients

    clients = asyncio.run(work())
    assert clients.failed == []
    assert clients.sent > 300


@pytest.mark.parametrize("victim", ["canary", "router", "triton"])
def test_what_is_killed_while_a_canary_has_traffic_comes_back_whole(services, victim):
    async def work() -> None:
        _passed(await services.lead(services.request(1)), "promoted", services)
        async with Clients(services.router_port) as clients:
            request = services.request(2, 1)
            await services.call("POST", "/rollouts", request.model_dump(mode="json"))
            await services.until(request.id, lambda status: status.weight > 0)
            services.kill(victim)
            services.start(victim)
            status = await services.until(request.id, lambda status: status.ended)
            target = await services.until_healthy()
        assert status.outcome in ("promoted", "rolled_back"), status
        version = "2" if status.outcome == "promoted" else "1"
        assert target.champion.release.version == version
        if victim == "canary":
            assert clients.failed == []
            _passed(status, "promoted", services)
            assert status.restarts == 1
        async with (
            aiohttp.ClientSession(headers={"Authorization": f"Bearer {TOKEN}"}) as session,
            session.get(f"http://127.0.0.1:{services.ports[1]}/state") as response,
        ):
            route = (await response.json())["targets"][TARGET]
        assert (route["champion"], route["canary"], route["weight"]) == (target.champion.name, None, 0)

    asyncio.run(work())


def test_the_api_asks_for_its_token_and_says_what_is_wrong(idle):
    async def work() -> None:
        url = f"http://127.0.0.1:{idle.ports[2]}"
        async with aiohttp.ClientSession() as session:
            async with session.get(f"{url}/targets/{TARGET}") as response:
                assert response.status == 401
            async with session.get(f"{url}/health") as response:
                assert response.status == 200
        assert (await idle.call("GET", "/targets/nothing"))[0] == 404
        assert (await idle.call("GET", "/rollouts/nothing"))[0] == 404
        code, document = await idle.call("POST", "/rollouts", {"id": "x", "kind": "release", "target": TARGET})
        assert (code, "a release names what to release" in document["error"]) == (422, True)
        request = idle.request(1).model_dump(mode="json")
        assert (await idle.call("POST", "/rollouts", request))[0] == 201
        assert (await idle.call("POST", "/rollouts", request))[0] == 200
        code, document = await idle.call("POST", "/rollouts", {**request, "drill": "slow"})
        assert (code, document["rollout"]) == (409, request["id"])
        assert (await idle.call("POST", f"/rollouts/{request['id']}/resume"))[0] == 409
        await idle.until(request["id"], lambda status: status.ended)
        code, document = await idle.call("DELETE", f"/targets/{TARGET}")
        assert (code, document) == (200, {"target": TARGET, "retired": True})
        assert (await idle.call("GET", f"/targets/{TARGET}"))[0] == 404

    asyncio.run(work())


def test_a_second_controller_is_kept_off_the_folder(idle):
    second = [sys.executable, "-m", "jobs.canary", "serve", "--folder", str(idle.folder), "--port", "1"]
    second += ["--router", "http://127.0.0.1:1", "--triton", "127.0.0.1:1", "--store", "file:///nowhere"]
    done = subprocess.run(second, capture_output=True, text=True, env=dict(os.environ), timeout=60)
    assert done.returncode == 64
    assert "another controller works on" in done.stderr


def test_status_and_abort_from_the_command_line(idle):

    def ask(*arguments: str) -> subprocess.CompletedProcess[str]:
        place = ["--folder", str(idle.folder), "--port", str(idle.ports[2])]
        command = [sys.executable, "-m", "jobs.canary", *arguments, *place]
        return subprocess.run(command, capture_output=True, text=True, timeout=60)

    asyncio.run(idle.lead(idle.request(1)))
    assert json.loads(ask("status", f"target:{TARGET}").stdout)["champion"]["release"]["version"] == "1"
    assert json.loads(ask("status", "release-1-none").stdout)["outcome"] == "promoted"
    refused = ask("abort", "release-1-none")
    asyncio.run(idle.call("DELETE", f"/targets/{TARGET}"))
    assert (refused.returncode, refused.stderr.startswith("error: rollout release-1-none is promoted")) == (64, True)
