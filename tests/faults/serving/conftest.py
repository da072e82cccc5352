"""Services with a live release, clients that never stop, and a proxy between each two services."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from include.release.rollouts import RolloutRequest, RolloutStatus
from include.specs.base import Artifact
from tests.faults.serving.proxy import Proxy
from tests.jobs.serving.canary.services import Clients, Services, make_engines, running
from tests.ports import free_ports


@dataclass
class Live:
    """Version 1 is live, and clients ask for it all the time.

    Attributes:
        router_to_triton, controller_to_router: pass everything on until a test spoils them.
    """

    services: Services
    clients: Clients
    router_to_triton: Proxy
    controller_to_router: Proxy

    async def canary_under_traffic(self, **policy: Any) -> RolloutStatus:
        """Ask for version 2; return its status once it gets traffic."""
        request = self.services.request(2, 1, **policy)
        await self.services.ask(request)
        return await self.services.until(request.id, lambda status: status.state == "step" and status.weight > 0)

    async def roll_out(self, request: RolloutRequest, outcome: str) -> RolloutStatus:
        """Ask for a rollout, and wait for its end, which has to be this one."""
        await self.services.ask(request)
        return await self.ended(request.id, outcome)

    async def ended(self, rollout: str, outcome: str, restarts: int = 0, seconds: float = 120) -> RolloutStatus:
        """Wait for a rollout's end, which has to be this one."""
        status = await self.services.ended(rollout, seconds)
        assert (status.outcome, status.restarts) == (outcome, restarts), self.services.describe(status)
        return status

    async def serves(self, version: int) -> None:
        """Check that all of the traffic is on this version, and that it answers."""
        target = await self.services.until_healthy()
        assert target.champion is not None and target.champion.release.version == str(version)
        route = await self.services.route()
        assert (route["champion"], route["canary"], route["weight"]) == (target.champion.name, None, 0)

    async def nobody_noticed(self) -> None:
        """Check that every client has got an answer, from the first request on."""
        sent = self.clients.sent
        while self.clients.sent < sent + 10:
            await asyncio.sleep(0.05)
        assert self.clients.failed == []


Body = Callable[[Live], Awaitable[None]]


@pytest.fixture(scope="session")
def engines(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Artifact]:
    return make_engines(tmp_path_factory.mktemp("engines"))


@asynccontextmanager
async def live(folder: Path, engines: dict[int, Artifact], options: dict[str, Sequence[str]], rate: float) -> Any:
    to_triton, to_router = free_ports(2)
    services = Services(
        folder,
        engines,
        options=options,
        triton_url=f"http://127.0.0.1:{to_triton}",
        admin_url=f"http://127.0.0.1:{to_router}",
    )
    async with (
        running(services),
        Proxy(to_triton, services.triton_http) as router_to_triton,
        Proxy(to_router, services.admin) as controller_to_router,
    ):
        first = await services.roll_out(services.request(1))
        assert first.outcome == "promoted", services.describe(first)
        async with Clients(services.router_port, rate) as clients:
            yield Live(services, clients, router_to_triton, controller_to_router)


@pytest.fixture
def with_live(tmp_path: Path, engines: dict[int, Artifact]) -> Callable[..., None]:
    """Run an async test body with a serving side of its own."""

    def run(
        body: Body,
        *,
        rate: float = 40,
        folder: Path = tmp_path,
        engines: dict[int, Artifact] = engines,
        **options: Sequence[str],
    ) -> None:
        async def work() -> None:
            async with asyncio.timeout(240), live(folder, engines, options, rate) as found:
                await body(found)

        asyncio.run(work())

    return run


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of a few megabytes, where this user may mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(folder)], capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"no small disk can be mounted here ({done.stderr.strip()})")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)
