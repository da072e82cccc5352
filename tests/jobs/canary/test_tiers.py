"""A cluster's serving side on this machine: two stable Tritons and one for canaries, an agent beside each."""

from __future__ import annotations

import asyncio
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from include.specs.base import Artifact
from tests.jobs.canary.services import TOKEN, Clients, Services, make_engines, running
from tests.jobs.triton.conftest import free_ports


@dataclass
class Pod:
    """A Triton and its agent, with a folder that only they share."""

    folder: Path
    token_file: Path
    ports: list[int] = field(default_factory=lambda: free_ports(4))
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def triton(self) -> str:
        return f"http://127.0.0.1:{self.ports[0]}"

    @property
    def agent(self) -> str:
        return f"127.0.0.1:{self.ports[3]}"

    def start(self) -> None:
        self.folder.mkdir(parents=True)
        http, grpc, metrics, agent = map(str, self.ports)
        for arguments in (
            ["jobs.triton", "--http-port", http, "--grpc-port", grpc, "--metrics-port", metrics, "--exit-seconds", "3"],
            ["jobs.triton.agent", "--port", agent, "--triton", f"127.0.0.1:{grpc}", "--token-file", self.token_file],
        ):
            with (self.folder.parent / f"{self.folder.name}.log").open("ab") as log:
                command = [sys.executable, "-m", *map(str, arguments), "--folder", str(self.folder)]
                self.processes.append(subprocess.Popen(command, stdout=log, stderr=log))

    def kill(self) -> None:
        """The node is lost, and all that was on it."""
        for process in self.processes:
            process.kill()
            process.wait()
        self.processes.clear()
        shutil.rmtree(self.folder)

    def stop(self) -> None:
        for process in self.processes:
            process.send_signal(signal.SIGTERM)
        for process in self.processes:
            try:
                process.wait(40)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    async def ready(self) -> tuple[int, Any]:
        """What the kubelet sees."""
        try:
            return await _call("GET", f"http://{self.agent}/ready", token="")
        except aiohttp.ClientError:
            return 0, None

    async def state(self) -> dict[str, Any]:
        return (await _call("GET", f"http://{self.agent}/state"))[1]


async def _call(method: str, url: str, token: str = TOKEN) -> tuple[int, Any]:
    headers = {"Authorization": f"Bearer {token}"}
    async with aiohttp.ClientSession(headers=headers) as session, session.request(method, url) as response:
        return response.status, await response.json()


async def _until(true: Callable[[], Any], seconds: float = 60) -> None:
    async with asyncio.timeout(seconds):
        while not await true():
            await asyncio.sleep(0.1)


@dataclass
class Cluster(Services):
    """Router and controller with two tiers.

    Attributes:
        stable, canary: pods.
    """

    stable: list[Pod] = field(default_factory=list)
    canary: list[Pod] = field(default_factory=list)

    def command(self, name: str) -> list[str]:
        command = super().command(name)
        if name == "router":
            at = command.index("--triton")
            tiers = ["--triton", self.stable[0].triton, "--canary-triton", self.canary[0].triton]
            return [*command[:at], *tiers, "--fresh-connections", *command[at + 2 :]]
        at = command.index("--triton")
        tiers = ["--stable", *(pod.agent for pod in self.stable), "--canary", *(pod.agent for pod in self.canary)]
        return [*command[:at], *tiers, *command[at + 2 :]]

    def start(self, *names: str) -> None:
        super().start(*(names or ("router", "canary")))


@asynccontextmanager
async def cluster(folder: Path, engines: dict[int, Artifact]) -> AsyncIterator[Cluster]:
    token_file = folder / "token"
    pods = {name: Pod(folder / "pods" / name, token_file) for name in ("stable0", "stable1", "canary0")}
    token_file.write_text(TOKEN)
    for pod in pods.values():
        pod.start()
    try:
        services = Cluster(folder, engines, stable=[pods["stable0"], pods["stable1"]], canary=[pods["canary0"]])
        async with running(services):
            yield services
    finally:
        for pod in pods.values():
            await asyncio.to_thread(pod.stop)


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Artifact]:
    return make_engines(tmp_path_factory.mktemp("engines"))


def test_a_release_goes_from_the_canary_tier_to_every_stable_pod(tmp_path: Path, engines: dict[int, Artifact]) -> None:
    async def run() -> None:
        async with cluster(tmp_path, engines) as services:
            first = await services.lead(services.request(1))
            assert first.outcome == "promoted", services.told(first)
            for pod in services.stable:
                assert (await pod.state())["ready"] == [first.name]
            await _until(lambda: _are_ready([*services.stable, *services.canary]))
            await _until(lambda: _is_empty(services.canary[0]))

            async with Clients(services.router_port) as clients:
                second = await services.lead(services.request(2, 1))
                assert second.outcome == "promoted", services.told(second)
            assert clients.sent > 60 and not clients.failed
            route = await services.route()
            assert route["champion"] == second.name and route["canary"] is None
            for pod in services.stable:
                assert (await pod.state())["ready"] == sorted([first.name, second.name])  # the former stays warm
            await _until(lambda: _is_empty(services.canary[0]))

            back = await services.lead(_rollback(services))
            assert back.outcome == "promoted" and back.champion.name == first.name

    asyncio.run(run())


def test_a_new_pod_takes_no_requests_before_it_has_the_champion(tmp_path: Path, engines: dict[int, Artifact]) -> None:
    async def run() -> None:
        async with cluster(tmp_path, engines) as services:
            live = await services.lead(services.request(1))
            lost = services.stable[1]
            lost.kill()
            await services.until_healthy()  # the other serves on
            services.kill("canary")
            lost.start()
            code = 0
            while not code:
                code, document = await lost.ready()
            assert code == 503 and "not said yet" in document["error"]
            services.start("canary")
            await _until(lambda: _are_ready([lost]))
            assert (await lost.state())["ready"] == [live.name]

    asyncio.run(run())


def test_what_a_stable_pod_cannot_take_over_is_not_promoted(tmp_path: Path, engines: dict[int, Artifact]) -> None:
    async def run() -> None:
        async with cluster(tmp_path, engines) as services:
            live = await services.lead(services.request(1))
            # A folder in which nothing can be made any more, as on a full or broken disk.
            broken = services.stable[1].folder / "models"
            broken.rename(broken.with_name("models-away"))
            broken.write_text("")
            async with Clients(services.router_port) as clients:
                second = await services.lead(services.request(2, 1), seconds=240)
            assert second.outcome == "rolled_back" and "cannot take" in second.reasons[0], services.told(second)
            assert services.stable[1].agent in second.reasons[0]
            assert not clients.failed
            assert (await services.target()).champion.name == live.name

    asyncio.run(run())


def test_an_agent_says_that_it_is_leaving_and_stays_until_its_triton_has_gone(
    tmp_path: Path, engines: dict[int, Artifact]
) -> None:
    async def run() -> None:
        async with cluster(tmp_path, engines) as services:
            await services.lead(services.request(1))
            pod = services.stable[1]
            triton, agent = pod.processes
            agent.send_signal(signal.SIGTERM)
            await _until(lambda: _leaves(pod))
            assert (await pod.ready())[0] == 503
            assert agent.poll() is None
            triton.send_signal(signal.SIGTERM)
            assert await asyncio.to_thread(agent.wait, 30) == 0
            second = await services.lead(services.request(2, 1, steps=(0.5,)))
            assert (
                second.outcome != "promoted"
            )  # no clients: too little evidence; the pod that left keeps nobody waiting

    asyncio.run(run())


def test_nothing_is_done_without_the_token(tmp_path: Path, engines: dict[int, Artifact]) -> None:
    async def run() -> None:
        async with cluster(tmp_path, engines) as services:
            await services.lead(services.request(1))
            agent = f"http://{services.stable[0].agent}"
            for method, path in (
                ("GET", "/state"),
                ("PUT", "/serves"),
                ("PUT", "/releases/a"),
                ("DELETE", "/releases/a"),
                ("POST", "/releases/a/load"),
                ("POST", "/releases/a/unload"),
                ("POST", "/releases/a/generate"),
            ):
                assert (await _call(method, agent + path, token="wrong"))[0] == 401
            assert (await _call("GET", f"{agent}/health", token=""))[0] == 200

    asyncio.run(run())


async def _are_ready(pods: list[Pod]) -> bool:
    return all([(await pod.ready())[0] == 200 for pod in pods])


async def _is_empty(pod: Pod) -> bool:
    state = await pod.state()
    return not (state["ready"] or state["installed"] or state["engines"])


async def _leaves(pod: Pod) -> bool:
    return (await pod.state())["leaving"]


def _rollback(services: Services) -> Any:
    return services.request(1).model_copy(update={"id": "back", "kind": "rollback", "release": None})
