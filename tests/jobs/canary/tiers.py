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

from include.specs.base import Artifact
from tests.jobs.canary.services import TOKEN, Services, running
from tests.ports import free_ports


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
            return await call("GET", f"http://{self.agent}/ready", token="")
        except aiohttp.ClientError:
            return 0, None

    async def state(self) -> dict[str, Any]:
        return (await call("GET", f"http://{self.agent}/state"))[1]


async def call(method: str, url: str, token: str = TOKEN) -> tuple[int, Any]:
    headers = {"Authorization": f"Bearer {token}"}
    async with aiohttp.ClientSession(headers=headers) as session, session.request(method, url) as response:
        return response.status, await response.json()


async def until(true: Callable[[], Any], seconds: float = 60) -> None:
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


async def are_ready(pods: list[Pod]) -> bool:
    return all([(await pod.ready())[0] == 200 for pod in pods])


async def is_empty(pod: Pod) -> bool:
    state = await pod.state()
    return not (state["ready"] or state["installed"] or state["engines"])


async def leaves(pod: Pod) -> bool:
    return (await pod.state())["leaving"]


def rollback(services: Services) -> Any:
    return services.request(1).model_copy(update={"id": "back", "kind": "rollback", "release": None})
