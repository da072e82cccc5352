"""What the controller makes of the router's answers."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from aiohttp import web

from jobs.serving.canary.traffic.interface import RouterError
from jobs.serving.canary.traffic.router import Router
from tests.jobs.serving.router.conftest import CANARY, CHAMPION, TOKEN, running

GARBAGE = (
    b"",
    b"\x00\xff<html>",
    b"[]",
    b"{}",
    b'{"boot": "x"}',
    b'{"boot": 5, "targets": {}, "generations": [], "samples": [], "lost": 0}',
    b'{"boot": "x", "targets": [], "generations": {}, "samples": 5, "lost": 0}',
    b'{"boot": "x", "targets": {"kubectl": {}}, "generations": [{"generation": "two"}], "samples": [{}], "lost": 0}',
    b"[" * 100_000,
)


@pytest.mark.parametrize("garbage", GARBAGE)
def test_an_answer_that_makes_no_sense_is_the_routers_error(garbage: bytes) -> None:
    async def answer(_request: web.Request) -> web.Response:
        return web.Response(body=garbage, content_type="application/json")

    async def work() -> None:
        application = web.Application()
        application.router.add_route("*", "/{path:.*}", answer)
        runner = web.AppRunner(application)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        try:
            async with Router(f"http://127.0.0.1:{runner.addresses[0][1]}", "token") as router:
                for ask in (router.state(), router.counts("kubectl"), router.samples("kubectl", 0)):
                    with pytest.raises(RouterError, match="makes no sense"):
                        await ask
        finally:
            await runner.cleanup()

    asyncio.run(work())


def test_the_routers_own_answers_make_sense(tmp_path: Path) -> None:
    async def work() -> None:
        async with running(tmp_path) as served:
            await served.route(canary=CANARY, weight=0.5, sample=1.0, slow_seconds={"total": 9.0})
            for prompt in ("a", "b", "c"):
                assert (await served.ask(prompt))[0] == 200
            async with Router(f"http://127.0.0.1:{served.admin_port}", TOKEN) as router:
                found = (await router.state())["targets"]["kubectl"]
                assert (found["champion"], found["weight"], found["slow_seconds"]["total"]) == (CHAMPION, 0.5, 9.0)
                assert await router.routed() == {"champion": {CHAMPION}, "canary": {CANARY}}
                assert router.refuses("any") is None
                (*_, part) = (await router.counts("kubectl"))["generations"]
                assert part["champion"]["finished"] + part["canary"]["finished"] == 3
                assert len((await router.samples("kubectl", 0))["samples"]) == 3

    asyncio.run(work())
