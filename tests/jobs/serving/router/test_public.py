"""What clients can reach, and what they cannot."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.jobs.serving.router.conftest import CANARY, CHAMPION, Router


def test_nothing_of_triton_can_be_reached(with_router: Callable[..., None]) -> None:
    async def body(router: Router) -> None:
        await router.route(canary=CANARY, weight=0.5)
        seen = []
        for method, path in (
            ("POST", "/v2/repository/index"),
            ("POST", f"/v2/repository/models/{CANARY}/unload"),
            ("POST", "/v2/repository/models/kubectl/load"),
            ("GET", "/v2/models/stats"),
            ("GET", "/v2/models/kubectl/stats"),
            ("GET", "/v2/models/kubectl/config"),
            ("GET", "/v2/models/kubectl/versions/1"),
            ("POST", "/v2/models/kubectl/versions/1/infer"),
            ("GET", "/v2/models/kubectl/trace/setting"),
            ("POST", "/v2/trace/setting"),
            ("POST", "/v2/logging"),
            ("GET", "/v2/systemsharedmemory/status"),
            ("GET", "/v2/cudasharedmemory/status"),
            ("GET", "/metrics"),
            ("GET", "/state"),
            ("GET", f"/v2/models/{CHAMPION}"),
            ("GET", f"/v2/models/{CHAMPION}/ready"),
            ("POST", f"/v2/models/{CHAMPION}/generate"),
            ("POST", f"/v2/models/{CHAMPION}/generate_stream"),
            ("POST", f"/v2/models/{CANARY}/infer"),
            ("GET", f"/v1/models/{CHAMPION}"),
            ("GET", f"/v2/models/kubectl%2F..%2F{CHAMPION}/ready"),
            ("GET", f"/v2/models/kubectl/../{CHAMPION}/ready"),
        ):
            async with router.session.request(method, router.url + path, json={"text_input": "x"}) as response:
                assert response.status in (404, 405), path
                seen.append((path, str(response.headers) + await response.text()))
        for path in ("/v2/models/kubectl", "/v1/models", "/v2", "/v2/health/ready", "/v2/models/kubectl/ready"):
            async with router.session.get(router.url + path) as response:
                assert response.status == 200, path
                seen.append((path, str(response.headers) + await response.text()))
        for mode in ("echo", "error_500", "rejects", "absent"):
            router.triton.modes = {CHAMPION: mode, CANARY: mode}
            for path in ("infer", "generate", "generate_stream"):
                asked = {"text_input": "x"}
                if path == "infer":
                    asked = {"inputs": [{"name": "text_input", "datatype": "BYTES", "shape": [1], "data": ["x"]}]}
                async with router.session.post(f"{router.url}/v2/models/kubectl/{path}", json=asked) as response:
                    seen.append((path, str(response.headers) + await response.text()))
        for path, answer in seen:
            for secret in (CHAMPION, CANARY):
                assert secret in path or secret not in answer, (path, answer)
            assert "triton" not in answer.lower(), (path, answer)

    with_router(body)


def test_errors_come_in_the_format_of_their_protocol(with_router: Callable[..., None]) -> None:
    async def body(router: Router) -> None:
        for path in ("/v1/completions", "/v1/chat/completions"):
            for sent, status in ((b"{", 400), (b"[]", 400), (b"[" * 100_000, 400), (b"\xff", 400), (b"x" * 2001, 413)):
                expected = 413 if len(sent) > 2000 else status
                answered, document = await router.post(path, sent)
                assert answered == expected
                assert document["error"]["type"] == "invalid_request_error" and document["error"]["message"]
        packed = gzip.compress(b" " * 1_000_000)
        status, _ = await router.post("/v1/completions", packed, headers={"Content-Encoding": "gzip"})
        assert status == 413
        status, document = await router.post("/v1/completions", b"{}", headers={"Content-Encoding": "gzip"})
        assert status == 400 and "Content-Encoding" in document["error"]["message"]
        for path in ("/v2/models/kubectl/generate", "/v2/models/kubectl/infer"):
            for sent, status in ((b"{", 400), (b"x" * 2001, 413)):
                answered, document = await router.post(path, sent)
                assert answered == status and isinstance(document["error"], str)
        assert await router.post("/v2/models/other/generate", {}) == (
            404,
            {"error": "the model 'other' does not exist: GET /v1/models lists those that do"},
        )
        assert (await router.counts())["champion"]["assigned"] == 0

    with_router(body, "--max-body-bytes", "2000")


def test_rows_are_requests_of_their_own(with_router: Callable[..., None]) -> None:
    async def body(router: Router) -> None:
        await router.route(canary=CANARY, weight=0.5)
        prompts = [f"row {number}" for number in range(20)]
        status, document = await router.post(
            "/v2/models/kubectl/infer",
            {"id": "a", "inputs": [{"name": "text_input", "datatype": "BYTES", "shape": [20, 1], "data": prompts}]},
        )
        assert status == 200 and document["id"] == "a" and document["model_name"] == "kubectl"
        outputs = {output["name"]: output for output in document["outputs"]}
        assert outputs["text_output"]["data"] == [f"echo {prompt}" for prompt in prompts]
        assert outputs["text_output"]["shape"] == [20, 1]
        counts = await router.counts()
        assert counts["champion"]["finished"] + counts["canary"]["finished"] == 20
        assert counts["champion"]["finished"] and counts["canary"]["finished"]
        router.triton.modes = {CHAMPION: "error_500", CANARY: "error_500"}
        status, document = await router.post(
            "/v2/models/kubectl/infer",
            {"inputs": [{"name": "text_input", "datatype": "BYTES", "shape": [20, 1], "data": prompts}]},
        )
        assert (status, document) == (502, {"error": "the model failed to answer: try again"})

    with_router(body)


def rows(*prompts: str) -> dict[str, Any]:
    tensor = {"name": "text_input", "datatype": "BYTES", "shape": [len(prompts), 1], "data": prompts}
    return {"inputs": [tensor]}


def test_a_row_that_fails_leaves_its_neighbours_alone(with_router: Callable[..., None]) -> None:
    async def body(router: Router) -> None:
        router.triton.modes[CHAMPION] = "fails_on_bad"
        status, document = await router.post("/v2/models/kubectl/infer", rows("good", "bad", "good"))
        assert (status, document) == (502, {"error": "the model failed to answer: try again"})
        champion = (await router.counts())["champion"]
        assert champion["statuses"] == {"200": 2, "502": 1} and router.triton.broken_off == []

    with_router(body)


def test_a_client_that_leaves_ends_all_its_rows(with_router: Callable[..., None]) -> None:
    async def body(router: Router) -> None:
        router.triton.modes[CHAMPION] = "hang"
        asked = asyncio.create_task(router.post("/v2/models/kubectl/infer", rows("a", "b", "c")))
        while len(router.triton.asked) < 3:
            await asyncio.sleep(0.01)
        asked.cancel()
        while (champion := (await router.counts())["champion"])["in_flight"]:
            await asyncio.sleep(0.01)
        assert champion["statuses"] == {"499": 3}

    with_router(body)


def test_one_request_of_many_rows_leaves_room_for_others(with_router: Callable[..., None]) -> None:
    async def body(router: Router) -> None:
        router.triton.modes[CHAMPION] = "slow"
        asked = asyncio.create_task(router.post("/v2/models/kubectl/infer", rows(*"abcdefghij")))
        while not router.triton.asked:
            await asyncio.sleep(0.01)
        assert (await router.counts())["champion"]["in_flight"] == 2
        assert (await router.ask())[0] == 200
        assert (await asked)[0] == 200

    with_router(body, "--max-requests", "8")


def test_bodies_that_do_not_arrive_take_no_more_than_their_places(with_router: Callable[..., None]) -> None:
    async def body(router: Router) -> None:
        head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 100\r\n\r\n"
        dawdlers = [await asyncio.open_connection("127.0.0.1", router.port) for _ in range(2)]
        for reader, writer in dawdlers:
            writer.write(head)
            # The router asks for the body where its handler begins.
            assert b"100" in await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
            writer.write(b"{")
        asked = {"model": "kubectl", "prompt": "x"}
        async with router.session.post(f"{router.url}/v1/completions", json=asked) as response:
            assert (response.status, response.headers["Retry-After"]) == (503, "1")
            assert "bodies" in (await response.json())["error"]["message"]
        for _, writer in dawdlers:
            writer.close()
            await writer.wait_closed()
        while (await router.ask())[0] != 200:
            await asyncio.sleep(0.01)

    with_router(body, "--max-bodies", "2")


def test_a_client_that_dawdles_over_its_body_is_sent_away(with_router: Callable[..., None]) -> None:
    async def body(router: Router) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", router.port)
        writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        answer = await asyncio.wait_for(reader.readuntil(b"\r\n"), 5)
        assert b"408" in answer
        writer.close()

    with_router(body, "--max-body-seconds", "0.3")


def test_a_client_that_does_not_read_its_stream_is_given_up(with_router: Callable[..., None]) -> None:
    async def body(router: Router) -> None:
        router.triton.modes[CHAMPION] = "flood"
        reader, writer = await asyncio.open_connection("127.0.0.1", router.port, limit=1)
        request = json.dumps({"model": "kubectl", "prompt": "x", "stream": True}).encode()
        writer.write(
            b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (len(request), request)
        )
        await asyncio.wait_for(router.triton.gone.wait(), 20)
        while (champion := (await router.counts())["champion"])["in_flight"]:
            await asyncio.sleep(0.01)
        assert (champion["finished"], champion["statuses"]) == (0, {"499": 1})
        writer.close()
        assert reader is not None

    with_router(body, "--write-seconds", "0.3")


@pytest.mark.parametrize("ready", [True, False])
def test_readiness_is_the_models(with_router: Callable[..., None], ready: bool) -> None:
    async def body(router: Router) -> None:
        router.triton.modes[CHAMPION] = "echo" if ready else "absent"
        async with router.session.get(f"{router.url}/v2/models/kubectl/ready") as response:
            assert response.status == (200 if ready else 503)
        await router.triton.stop()
        for path, status in (("/v2/health/live", 200), ("/v2/health/ready", 503), ("/v2/models/kubectl/ready", 503)):
            async with router.session.get(router.url + path) as response:
                assert response.status == status

    with_router(body)
