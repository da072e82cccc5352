"""Releases on a cluster's two tiers, and what becomes of pods meanwhile: each pod a Triton and an agent of its own."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path
from typing import Any

import aiohttp

from include.specs.base import Artifact
from tests.faults.scenario import scenario
from tests.jobs.serving.canary.services import Clients
from tests.jobs.serving.canary.tiers import Cluster, Pod, are_ready, cluster, leaves, until


@scenario(
    given="a live release on two stable pods and one for canaries",
    when="a stable pod is lost with all that was on it, the controller dies, and both come back",
    then="the other pod serves on, and the new one takes requests as soon as it has the champion, and not before",
)
def test_a_new_pod_takes_no_requests_before_it_has_the_champion(tmp_path: Path, engines: dict[int, Artifact]) -> None:
    async def run() -> None:
        async with cluster(tmp_path, engines) as services:
            live = await services.roll_out(services.request(1))
            lost = services.stable[1]
            lost.kill()
            await until(lambda: only(services, services.stable[0]))
            async with Clients(services.router_port, rate=15) as clients:
                await services.until_healthy()
                services.kill("canary")
                lost.start()
                code = 0
                while not code:
                    code, document = await lost.ready()
                assert code == 503 and "not said yet" in document["error"]
                before = services.balancer.given["stable1"]
                services.start("canary")
                await until(lambda: are_ready([lost]))
                assert (await lost.state())["ready"] == [live.name]
                await until(lambda: took(services, "stable1", before + 5))
            assert clients.sent > 30 and not clients.failed, clients.failed

    asyncio.run(run())


@scenario(
    given="a good canary, and a stable pod on whose disk nothing can be made any more",
    when="it is to be promoted",
    then="it is rolled back with the pod's address, no request fails, and the champion stays",
)
def test_what_a_stable_pod_cannot_take_over_is_not_promoted(
    tmp_path: Path, engines: dict[int, Artifact], reads: Any
) -> None:
    async def run() -> None:
        async with cluster(tmp_path, engines) as services:
            live = await services.roll_out(services.request(1))
            # A folder in which nothing can be made any more, as on a full or broken disk.
            broken = services.stable[1].folder / "models"
            broken.rename(broken.with_name("models-away"))
            broken.write_text("")
            async with Clients(services.router_port) as clients:
                second = await services.roll_out(services.request(2, 1), seconds=240)
            assert second.outcome == "rolled_back" and "cannot take" in second.reasons[0], services.describe(second)
            assert services.stable[1].agent in second.reasons[0]
            assert not clients.failed
            reads(second.reasons[0])
            assert (await services.target()).champion.name == live.name

    asyncio.run(run())


@scenario(
    given="a live release on two stable pods, and clients",
    when="one of them is told to stop (SIGTERM), and a release begins while it leaves",
    then="it takes no new request, stays until its Triton has gone, and the release is promoted without it",
)
def test_an_agent_says_that_it_is_leaving_and_stays_until_its_triton_has_gone(
    tmp_path: Path, engines: dict[int, Artifact]
) -> None:
    async def run() -> None:
        async with cluster(tmp_path, engines) as services:
            first = await services.roll_out(services.request(1))
            await until(lambda: are_ready(services.stable))
            pod = services.stable[1]
            triton, agent = pod.processes
            async with Clients(services.router_port) as clients:
                agent.send_signal(signal.SIGTERM)
                await until(lambda: leaves(pod))
                assert (await pod.ready())[0] == 503
                await until(lambda: only(services, services.stable[0]))
                given = services.balancer.given["stable1"]
                second = await services.roll_out(services.request(2, 1))
                assert second.outcome == "promoted", services.describe(second)
                assert agent.poll() is None
                assert (await pod.state())["ready"] == [first.name]
                assert services.balancer.given["stable1"] == given
            assert clients.sent > 60 and not clients.failed, clients.failed
            triton.send_signal(signal.SIGTERM)
            assert await asyncio.to_thread(agent.wait, 30) == 0

    asyncio.run(run())


@scenario(
    given="a live release, and a router in a pod without a volume",
    when="the router's pod is lost, and a new one starts with nothing",
    then="the controller tells it its routes, and clients are served",
)
def test_a_router_that_has_lost_its_routes_is_told_them(tmp_path: Path, engines: dict[int, Artifact]) -> None:
    async def run() -> None:
        async with cluster(tmp_path, engines) as services:
            live = await services.roll_out(services.request(1))
            services.kill("router")
            for path in tmp_path.glob("router.json*"):
                path.unlink()
            services.start("router")
            await until(lambda: leads(services, live.name), 20)
            async with Clients(services.router_port) as clients:
                await asyncio.sleep(1)
            assert clients.sent > 10 and not clients.failed, clients.failed

    asyncio.run(run())


async def only(services: Cluster, pod: Pod) -> bool:
    return services.balancer.ready == [pod]


async def took(services: Cluster, pod: str, connections: int) -> bool:
    return services.balancer.given[pod] >= connections


async def leads(services: Cluster, release: str | None) -> bool:
    try:
        return (await services.route())["champion"] == release
    except (aiohttp.ClientError, KeyError):
        return False
