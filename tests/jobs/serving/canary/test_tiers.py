"""A release on two tiers: from the canary's Triton to every stable one."""

from __future__ import annotations

import asyncio
from pathlib import Path

from include.specs.base import Artifact
from tests.jobs.serving.canary.services import Clients
from tests.jobs.serving.canary.tiers import are_ready, call, cluster, is_empty, rollback, until


def test_a_release_goes_from_the_canary_tier_to_every_stable_pod(tmp_path: Path, engines: dict[int, Artifact]) -> None:
    async def run() -> None:
        async with cluster(tmp_path, engines) as services:
            first = await services.roll_out(services.request(1))
            assert first.outcome == "promoted", services.describe(first)
            for pod in services.stable:
                assert (await pod.state())["ready"] == [first.name]
            await until(lambda: are_ready([*services.stable, *services.canary]))
            await until(lambda: is_empty(services.canary[0]))

            async with Clients(services.router_port) as clients:
                second = await services.roll_out(services.request(2, 1))
                assert second.outcome == "promoted", services.describe(second)
            assert clients.sent > 60 and not clients.failed
            route = await services.route()
            assert route["champion"] == second.name and route["canary"] is None
            for pod in services.stable:
                assert (await pod.state())["ready"] == sorted([first.name, second.name])  # the former stays warm
            await until(lambda: is_empty(services.canary[0]))

            back = await services.roll_out(rollback(services))
            assert back.outcome == "promoted" and back.champion.name == first.name

    asyncio.run(run())


def test_nothing_is_done_without_the_token(tmp_path: Path, engines: dict[int, Artifact]) -> None:
    async def run() -> None:
        async with cluster(tmp_path, engines) as services:
            await services.roll_out(services.request(1))
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
                assert (await call(method, agent + path, token="wrong"))[0] == 401
            assert (await call("GET", f"{agent}/health", token=""))[0] == 200

    asyncio.run(run())
