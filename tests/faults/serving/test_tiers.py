"""Releases on a cluster's two tiers, and what becomes of pods meanwhile: each pod a Triton and an agent of its own."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path
from typing import Any

import pytest

from include.specs.base import Artifact
from tests.faults.scenario import scenario
from tests.jobs.canary.services import Clients, make_engines
from tests.jobs.canary.tiers import are_ready, cluster, leaves, until


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Artifact]:
    return make_engines(tmp_path_factory.mktemp("engines"))


@scenario(
    given="a live release on two stable pods and one for canaries",
    when="a stable pod is lost with all that was on it, the controller dies, and both come back",
    then="the other pod serves on, and the new one is not ready before it has the champion",
)
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
            await until(lambda: are_ready([lost]))
            assert (await lost.state())["ready"] == [live.name]

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
            reads(second.reasons[0])
            assert (await services.target()).champion.name == live.name

    asyncio.run(run())


@scenario(
    given="a live release on two stable pods",
    when="one of them is told to stop (SIGTERM), and a release begins meanwhile",
    then="it is not ready at once, serves what it has begun, and keeps nobody waiting",
)
def test_an_agent_says_that_it_is_leaving_and_stays_until_its_triton_has_gone(
    tmp_path: Path, engines: dict[int, Artifact]
) -> None:
    async def run() -> None:
        async with cluster(tmp_path, engines) as services:
            await services.lead(services.request(1))
            pod = services.stable[1]
            triton, agent = pod.processes
            agent.send_signal(signal.SIGTERM)
            await until(lambda: leaves(pod))
            assert (await pod.ready())[0] == 503
            assert agent.poll() is None
            triton.send_signal(signal.SIGTERM)
            assert await asyncio.to_thread(agent.wait, 30) == 0
            second = await services.lead(services.request(2, 1, steps=(0.5,), max_seconds=15))
            assert (
                second.outcome != "promoted"
            )  # no clients: too little evidence; the pod that left keeps nobody waiting

    asyncio.run(run())
