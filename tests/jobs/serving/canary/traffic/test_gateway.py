"""The gateway as traffic router: a route's weights over real HTTP, and two real routers behind a gateway."""

from __future__ import annotations

import asyncio
import json
import random
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from include.specs.base import Artifact
from jobs.serving.canary import __main__ as canary_main
from jobs.serving.canary.traffic import gateway as gateway_module
from jobs.serving.canary.traffic.gateway import Gateway
from jobs.serving.canary.traffic.http_route import HTTPRoute, KubernetesConfig
from jobs.serving.canary.traffic.interface import ConflictError, RouterError
from jobs.serving.canary.traffic.router import Router
from jobs.serving.router.routes import Split
from tests.jobs.serving.canary.services import TARGET, TOKEN, Clients, Services, running
from tests.jobs.serving.canary.traffic.kubernetes_api import KubernetesApi
from tests.jobs.serving.router.conftest import CANARY, CHAMPION
from tests.jobs.serving.router.conftest import TOKEN as ROUTER_TOKEN
from tests.jobs.serving.router.conftest import Router as RealRouter
from tests.jobs.serving.router.conftest import running as real_router
from tests.ports import free_ports


@dataclass
class TwoRouters:
    """A gateway before two real routers, the canary's having `CANARY` with a fifth of the traffic."""

    stable: RealRouter
    canary: RealRouter
    kubernetes: KubernetesApi
    gateway: Gateway
    again: Callable[[], Gateway]
    """Returns the gateway of the next controller."""

    async def shown(self) -> dict[str, Any]:
        return (await self.gateway.state())["targets"][TARGET]

    async def put(self, **route: Any) -> None:
        generation = (await self.shown())["generation"]
        await self.gateway.put(TARGET, Split(champion=CHAMPION, **route), generation, "me")


@asynccontextmanager
async def two_routers(folder: Path) -> AsyncIterator[TwoRouters]:
    kubernetes = KubernetesApi()
    folder.joinpath("token").write_text(ROUTER_TOKEN)
    async with (
        asyncio.timeout(60),
        real_router(folder / "stable") as stable,
        real_router(folder / "canary") as canary,
        kubernetes.served() as url,
        Router(f"http://127.0.0.1:{stable.admin_port}", ROUTER_TOKEN) as to_stable,
        Router(f"http://127.0.0.1:{canary.admin_port}", ROUTER_TOKEN) as to_canary,
        HTTPRoute(
            KubernetesConfig(url, folder / "token", None, "anemone"), "models", "models", "router", "router-canary"
        ) as route,
    ):

        def new_gateway() -> Gateway:
            return Gateway(to_stable, to_canary, route, TARGET, "life")

        found = TwoRouters(stable, canary, kubernetes, new_gateway(), new_gateway)
        await found.gateway.lease(TARGET, "me", 60)
        await found.put(canary=CANARY, weight=0.2)
        assert kubernetes.weights == [800, 200]
        yield found


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway_module, "TIMEOUT_SECONDS", 0.3)


def test_a_canary_whose_router_hangs_loses_its_traffic_and_the_router_is_told_when_it_is_back(
    tmp_path: Path, impatient: None
) -> None:
    async def run() -> None:
        async with two_routers(tmp_path) as it:
            it.canary.process.send_signal(signal.SIGSTOP)
            try:
                await it.put()
                assert it.kubernetes.weights == [1000, 0]
                shown = await it.shown()
                assert (shown["champion"], shown["canary"], shown["weight"]) == (CHAMPION, None, 0)
                (*_, last) = (await it.gateway.counts(TARGET))["generations"]
                assert last["champion"]["release"] == CHAMPION and last["weight"] == 0
                assert await it.gateway.routed() == {"champion": {CHAMPION}, "canary": set()}
            finally:
                it.canary.process.send_signal(signal.SIGCONT)
            # Not as it is to be: whoever keeps the route puts it again.
            assert (await it.shown())["canary"] == CANARY
            await it.put()
            assert (await it.shown())["canary"] is None
            assert await it.canary.weight() == 0

    asyncio.run(run())


def test_with_the_canarys_router_its_share_goes_too_and_comes_back_with_it(tmp_path: Path, impatient: None) -> None:
    async def run() -> None:
        async with two_routers(tmp_path) as it:
            it.canary.process.send_signal(signal.SIGSTOP)
            try:
                with pytest.raises(RouterError, match="no answer within"):
                    await it.gateway.lease(TARGET, "me", 60)
            finally:
                it.canary.process.send_signal(signal.SIGCONT)
            assert it.kubernetes.weights == [1000, 0]
            assert (await it.shown())["weight"] == 0
            await it.gateway.lease(TARGET, "me", 60)
            await it.put(canary=CANARY, weight=0.2)
            assert it.kubernetes.weights == [800, 200]
            with pytest.raises(ConflictError):
                await it.gateway.lease(TARGET, "somebody else", 60)
            assert it.kubernetes.weights == [800, 200]

    asyncio.run(run())


def test_where_clients_are_sent_is_known_right_after_a_restart(tmp_path: Path, impatient: None) -> None:
    async def run() -> None:
        async with two_routers(tmp_path) as it:
            next_gateway = it.again()
            assert (await next_gateway.state())["targets"][TARGET]["champion"] is None
            assert await next_gateway.routed() == {"champion": {CHAMPION}, "canary": {CANARY}}
            it.canary.process.kill()
            with pytest.raises(RouterError, match="20.0% of the traffic goes to the canary's router"):
                await next_gateway.routed()
            await it.put()
            assert await next_gateway.routed() == {"champion": {CHAMPION}, "canary": set()}

    asyncio.run(run())


def test_a_second_target_is_refused_before_anything_is_done_for_it(tmp_path: Path) -> None:
    async def run() -> None:
        async with two_routers(tmp_path) as it:
            assert it.gateway.refuses(TARGET) is None
            refusal = it.gateway.refuses("other")
            assert refusal is not None and f"the traffic of {TARGET}, not of other" in refusal
            with pytest.raises(ConflictError, match="not of other"):
                await it.gateway.put("other", Split(champion=CHAMPION), 0, "me")
            assert it.kubernetes.weights == [800, 200]

    asyncio.run(run())


@dataclass
class Gatewayed(Services):
    """Two routers, a small gateway before them, and the controller that changes its weights.

    Attributes:
        api: url of the API that holds the route; the controller is told of it in the way of a pod.
    """

    api: str = ""
    kubernetes: KubernetesApi = field(default_factory=KubernetesApi)
    canary_ports: list[int] = field(default_factory=lambda: free_ports(2))
    gateway_port: int = 0

    def command(self, name: str) -> list[str]:
        if name == "router-canary":
            folder = self.folder / "router-canary"
            folder.mkdir(exist_ok=True)
            command = super().command("router")
            port, admin = map(str, self.canary_ports)
            for flag, value in (("--port", port), ("--admin-port", admin), ("--folder", str(folder))):
                command[command.index(flag) + 1] = value
            return [*command, "--token-file", str(self.folder / "token")]
        command = super().command(name)
        if name == "canary":
            command += ["--gateway-route", "models", "--gateway-rule", "models", "--gateway-target", TARGET]
            command += ["--gateway-services", "router", "router-canary"]
            command += ["--canary-router", f"http://127.0.0.1:{self.canary_ports[1]}"]
            at = command.index("-m")
            given = {"url": self.api, "token": str(self.folder / "token"), "lease": LEASE_SECONDS}
            command[at : at + 2] = ["-c", _IN_A_POD.format(**given)]
        return command

    def start(self, *names: str) -> None:
        super().start(*(names or ("triton", "router", "router-canary", "canary")))


LEASE_SECONDS = 3.0
"""Shorter than by default: a test waits for it to lapse."""

_IN_A_POD = """
import functools, runpy
from pathlib import Path
from jobs.serving.canary import data_plane
from jobs.serving.canary.traffic import http_route
data_plane.DataPlane = functools.partial(data_plane.DataPlane, timing=data_plane.Timing(lease={lease}))
http_route.KubernetesConfig.in_cluster = lambda: http_route.KubernetesConfig({url!r}, Path({token!r}), None, "anemone")
runpy.run_module("jobs.serving.canary", run_name="__main__", alter_sys=True)
"""


@asynccontextmanager
async def gateway(services: Gatewayed) -> AsyncIterator[None]:
    """Sends each request to one of the two routers by the route's weights, as they are now."""
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def handle(request: web.Request) -> web.StreamResponse:
            weights = [1 if weight is None else weight for weight in services.kubernetes.weights]
            (port,) = random.choices((services.router_port, services.canary_ports[0]), weights)
            url = f"http://127.0.0.1:{port}{request.path_qs}"
            headers = {"Content-Type": request.content_type}
            async with session.request(request.method, url, data=await request.read(), headers=headers) as answer:
                response = web.StreamResponse(status=answer.status, headers={"Content-Type": answer.content_type})
                await response.prepare(request)
                async for chunk in answer.content.iter_any():
                    await response.write(chunk)
                return response

        application = web.Application()
        application.router.add_route("*", "/{path:.*}", handle)
        runner = web.AppRunner(application)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        services.gateway_port = runner.addresses[0][1]
        try:
            yield
        finally:
            await runner.cleanup()


@asynccontextmanager
async def gatewayed(folder: Path, engines: dict[int, Artifact]) -> AsyncIterator[Gatewayed]:
    services = Gatewayed(folder, engines)
    async with services.kubernetes.served() as url, gateway(services):
        services.api = url
        async with running(services):
            yield services


def test_a_gateway_leads_a_bad_canary_one_whose_controller_dies_and_a_good_one(
    tmp_path: Path, engines: dict[int, Artifact]
) -> None:
    """One after the other on the same services: to start them costs more than all three."""

    async def run() -> None:
        async with gatewayed(tmp_path, engines) as services:
            first = await services.roll_out(services.request(1))
            assert first.outcome == "promoted", services.describe(first)
            async with Clients(services.gateway_port) as clients:
                await _a_bad_canary_loses_its_traffic(services)
                await _without_the_controller_the_canary_is_out_of_force_though_the_weights_stay(services)
                await _a_good_canary_is_led_by_the_weights_and_promoted(services)
            assert clients.sent > 60 and not clients.failed

    asyncio.run(run())


async def _a_bad_canary_loses_its_traffic(services: Gatewayed) -> None:
    bad = await services.roll_out(services.request(2, 1, drill="failing"))
    assert bad.outcome == "rolled_back", services.describe(bad)
    assert services.kubernetes.weights == [1000, 0]
    assert (await services.target()).champion.release.version == "1"


async def _without_the_controller_the_canary_is_out_of_force_though_the_weights_stay(services: Gatewayed) -> None:
    rollout = "release-2-abandoned"
    await services.ask(services.request(2, 1, name=rollout, min_requests=5000, max_seconds=600))
    await services.until(rollout, lambda status: status.weight == 0.2)
    services.kill("canary")
    await asyncio.sleep(LEASE_SECONDS + 1)
    assert services.kubernetes.weights == [800, 200]
    state = await _call(f"http://127.0.0.1:{services.canary_ports[1]}/state")
    assert state["targets"][TARGET]["weight"] == 0
    services.start("canary")
    await services.live()
    await services.until(rollout, lambda status: status.restarts == 1 and status.weight == 0.2)
    await services.call("POST", f"/rollouts/{rollout}/abort", {"reason": "seen enough"})
    ended = await services.ended(rollout)
    assert ended.outcome == "rolled_back" and ended.champion.release.version == "1"
    assert services.kubernetes.weights == [1000, 0]


async def _a_good_canary_is_led_by_the_weights_and_promoted(services: Gatewayed) -> None:
    before = len(services.kubernetes.patches)
    second = await services.roll_out(services.request(2, 1))
    assert second.outcome == "promoted", services.describe(second)
    assert second.figures["canary_requests"] >= 60
    assert services.kubernetes.weights == [1000, 0]
    patches = services.kubernetes.patches[before:]
    seen = [[op["value"] for op in patch if op["path"].endswith("/weight")] for patch in patches]
    assert seen == [[800, 200], [500, 500], [1000, 0]]


def test_half_of_the_gateways_options_is_a_mistake(capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    command = (
        "jobs.serving.canary serve --folder . --port 1 --router http://r --triton t:1 --store s3://b "
        "--gateway-rule models"
    )
    monkeypatch.setattr("sys.argv", command.split())
    with pytest.raises(SystemExit) as ended:
        canary_main.main()
    assert ended.value.code == 64 and "--gateway-route" in capsys.readouterr().err


async def _call(url: str) -> Any:
    headers = {"Authorization": f"Bearer {TOKEN}"}
    async with aiohttp.ClientSession(headers=headers) as session, session.get(url) as response:
        return json.loads(await response.text())
