"""The admin API: token, generations, leases, durability, metrics."""

from __future__ import annotations

import asyncio
import random
import signal
from collections.abc import Callable
from pathlib import Path

from jobs.serving.router.routes import RouteFile
from tests.jobs.serving.router.conftest import CANARY, CHAMPION, Router, running


def test_nothing_without_the_token(with_router: Callable[..., None]) -> None:
    async def body(router: Router) -> None:
        for token in (None, "", "a-toke", "a-token2", "ä"):
            for method, path in (("GET", "/state"), ("PUT", "/targets/kubectl"), ("POST", "/targets/kubectl/lease")):
                status, document = await router.admin(method, path, token=token)
                assert status == 401 and "token" in document["error"]
        reader, writer = await asyncio.open_connection("127.0.0.1", router.admin_port)
        writer.write(b"GET /state HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer \xff\xfe\r\n\r\n")
        assert b" 401 " in await asyncio.wait_for(reader.readuntil(b"\r\n"), 5)
        writer.close()
        async with router.session.get(f"{router.url}/state", headers={"Authorization": "Bearer a-token"}) as response:
            assert response.status == 404, "the admin API is not on the public port"

    with_router(body)


def test_a_change_needs_the_generation_and_a_lease(with_router: Callable[..., None]) -> None:
    async def body(router: Router) -> None:
        async def put(**fields: object) -> tuple[int, str]:
            route = {"champion": CHAMPION, "canary": CANARY, "holder": "me", **fields}
            status, document = await router.admin("PUT", "/targets/kubectl", route)
            return status, document.get("error", "")

        assert await put(generation=0) == (
            409,
            "the route of kubectl is at generation 1, the change is based on 0: read /state and decide anew",
        )
        status, error = await put(generation=1, weight=0.5)
        assert status == 409 and "needs a live lease of me: it is held by nobody" in error
        await router.admin("POST", "/targets/kubectl/lease", {"holder": "you", "seconds": 60})
        status, error = await put(generation=1, weight=0.5)
        assert status == 409 and "held by you" in error
        assert (await router.admin("POST", "/targets/kubectl/lease", {"holder": "me", "seconds": 60}))[0] == 409
        assert (await router.admin("DELETE", "/targets/kubectl/lease", {"holder": "me"}))[0] == 409
        assert (await router.admin("DELETE", "/targets/kubectl/lease", {"holder": "you"}))[0] == 200
        status, lease = await router.admin("POST", "/targets/kubectl/lease", {"holder": "me", "seconds": 60})
        assert status == 200 and 59 < lease["expires_in"] <= 60
        assert (await put(generation=1, weight=0.5, canary=None))[0] == 409
        assert (await put(generation=1, weight=0.5, champion=None))[0] == 409
        for wrong in ({"weight": 1.1}, {"weight": "much"}, {"sample": -1}, {"champion": "../x"}, {"colour": "red"}):
            assert (await put(generation=1, **wrong))[0] == 400, wrong
        assert (await put(generation=1, weight=0.5)) == (200, "")
        assert await router.weight() == 0.5
        assert (await router.admin("PUT", "/targets/a%20b", {"generation": 0}))[0] == 400
        assert (await router.admin("GET", "/targets/unknown/counts"))[0] == 404

    with_router(body)


def test_of_changes_at_the_same_time_one_wins(with_router: Callable[..., None]) -> None:
    async def body(router: Router) -> None:
        changes = [
            router.admin("PUT", "/targets/kubectl", {"generation": 1, "champion": f"kubectl-v{number}"})
            for number in range(10)
        ]
        statuses = [status for status, _ in await asyncio.gather(*changes)]
        assert sorted(statuses) == [200, *[409] * 9]

    with_router(body)


def test_the_weight_ends_with_the_lease(with_router: Callable[..., None]) -> None:
    async def body(router: Router) -> None:
        await router.route(canary=CANARY, weight=1.0)
        await router.admin("POST", "/targets/kubectl/lease", {"holder": "me", "seconds": 0.2})
        await router.ask()
        while await router.weight():
            await asyncio.sleep(0.02)
        asked = len(router.triton.asked)
        assert [(await router.ask())[0] for _ in range(20)] == [200] * 20
        assert {release for release, _ in router.triton.asked[asked:]} == {CHAMPION}
        assert any(line.startswith("lease_lapsed target=kubectl") for line in router.lines)

    with_router(body)


def test_a_target_can_be_taken_out_of_service(with_router: Callable[..., None]) -> None:
    async def body(router: Router) -> None:
        for _ in range(2):
            assert (await router.admin("DELETE", "/targets/kubectl"))[0] == 200
        status, document = await router.ask()
        assert (status, document["error"]["code"]) == (404, "model_not_found")
        assert RouteFile(router.folder).read()[0] == {}
        assert (await router.route())["generation"] == 1
        await router.route(champion=None)
        async with router.session.post(
            f"{router.url}/v2/models/kubectl/generate", json={"text_input": "x"}
        ) as response:
            assert (response.status, response.headers["Retry-After"]) == (503, "5")
            assert "no live release" in (await response.json())["error"]

    with_router(body)


def test_metrics_need_no_token(with_router: Callable[..., None]) -> None:
    async def body(router: Router) -> None:
        router.triton.modes[CANARY] = "error_500"
        await router.ask()
        await router.stream()
        await router.route(canary=CANARY, weight=1.0)
        await router.ask()
        async with router.session.get(f"http://127.0.0.1:{router.admin_port}/metrics") as response:
            lines = (await response.text()).splitlines()
        champion = f'arm="champion",release="{CHAMPION}"'
        canary = f'arm="canary",release="{CANARY}"'
        for line in (
            f'anemone_router_requests_total{{{champion},status="200",target="kubectl"}} 2.0',
            f'anemone_router_requests_total{{{canary},status="502",target="kubectl"}} 1.0',
            f'anemone_router_rescued_total{{{canary},target="kubectl"}} 1.0',
            f'anemone_router_seconds_count{{{champion},target="kubectl"}} 2.0',
            f'anemone_router_first_token_seconds_count{{{champion},target="kubectl"}} 1.0',
            'anemone_router_canary_weight{target="kubectl"} 1.0',
        ):
            assert line in lines, "\n".join(lines)

    with_router(body)


def test_killed_between_changes_it_comes_back_with_the_old_or_the_new_route_and_no_weight(tmp_path: Path) -> None:
    async def body() -> None:
        draw = random.Random(3)
        async with running(tmp_path) as router:
            triton_url = f"http://127.0.0.1:{router.triton._runner.addresses[0][1]}"
            acknowledged = (await router.route(canary=CANARY))["generation"]
            for _ in range(10):
                champions = {acknowledged: f"kubectl-v{acknowledged}"}

                async def change(champions: dict[int, str] = champions) -> None:
                    nonlocal acknowledged
                    await router.admin("POST", "/targets/kubectl/lease", {"holder": "me", "seconds": 60})
                    while True:
                        champions[acknowledged + 1] = f"kubectl-v{acknowledged + 1}"
                        status, state = await router.admin(
                            "PUT",
                            "/targets/kubectl",
                            {
                                "generation": acknowledged,
                                "champion": champions[acknowledged + 1],
                                "canary": CANARY,
                                "weight": 0.5,
                                "holder": "me",
                            },
                        )
                        assert status == 200
                        acknowledged = state["generation"]

                changing = asyncio.create_task(change())
                await asyncio.sleep(0.02 + 0.1 * draw.random())
                router.process.send_signal(signal.SIGKILL)
                await asyncio.gather(changing, return_exceptions=True)
                await router.stop(signal.SIGKILL)
                await router.start(triton_url)
                state = (await router.admin("GET", "/state"))[1]["targets"]["kubectl"]
                assert state["generation"] in (acknowledged, acknowledged + 1)
                if state["generation"] > 2:
                    assert state["champion"] == f"kubectl-v{state['generation']}"
                assert state["weight"] == 0.0 and state["lease"] == {"holder": None, "expires_in": 0.0}
                acknowledged = state["generation"]
            assert acknowledged > 20
            assert (await router.ask())[0] == 200

    asyncio.run(body())
