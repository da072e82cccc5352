"""A cluster's serving side on this machine: two stable Tritons and one for canaries, an agent beside each.

The router reaches the stable ones as by a Service: each connection goes to one of the pods that are ready.
"""

from __future__ import annotations

import asyncio
import random
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
from tests.jobs.serving.canary.services import TOKEN, Services, running
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
            [
                *("jobs.serving.triton", "--http-port", http, "--grpc-port", grpc, "--metrics-port", metrics),
                *("--exit-seconds", "3"),
            ],
            [
                *("jobs.serving.triton.agent", "--port", agent, "--triton", f"127.0.0.1:{grpc}"),
                *("--token-file", self.token_file, "--leave-seconds", "120"),
            ],
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


class Balancer:
    """A Service: hands each connection to one of its pods that were ready at the last check.

    Attributes:
        ready: those pods.
        given: connections by the pod's folder name.
    """

    def __init__(self, pods: list[Pod]) -> None:
        self.ready: list[Pod] = []
        self.given: dict[str, int] = {pod.folder.name: 0 for pod in pods}
        self._pods = pods

    @asynccontextmanager
    async def served(self) -> AsyncIterator[str]:
        async with await asyncio.start_server(self._hand_over, "127.0.0.1", 0) as server:
            checking = asyncio.create_task(self._check())
            try:
                yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            finally:
                checking.cancel()

    async def _check(self) -> None:
        while True:
            self.ready = [pod for pod in self._pods if (await pod.ready())[0] == 200]
            await asyncio.sleep(0.2)

    async def _hand_over(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            pod = random.choice(self.ready)
            self.given[pod.folder.name] += 1
            there, back = await asyncio.open_connection("127.0.0.1", pod.ports[0])
        except (IndexError, OSError):
            writer.close()
            return
        await asyncio.gather(_pipe(reader, back), _pipe(there, writer))


async def _pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    except OSError:
        pass
    finally:
        writer.close()


@dataclass
class Cluster(Services):
    """Router and controller with two tiers.

    Attributes:
        stable, canary: pods.
        balancer: the Service of the stable ones, at `stable_url`.
    """

    stable: list[Pod] = field(default_factory=list)
    canary: list[Pod] = field(default_factory=list)
    balancer: Balancer = field(default_factory=lambda: Balancer([]))
    stable_url: str = ""

    def command(self, name: str) -> list[str]:
        command = super().command(name)
        if name == "router":
            at = command.index("--triton")
            tiers = ["--triton", self.stable_url, "--canary-triton", self.canary[0].triton]
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
        stable = [pods["stable0"], pods["stable1"]]
        balancer = Balancer(stable)
        async with balancer.served() as url:
            services = Cluster(
                folder, engines, stable=stable, canary=[pods["canary0"]], balancer=balancer, stable_url=url
            )
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
