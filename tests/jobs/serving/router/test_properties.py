"""Whatever a client sends, and however Triton's stream is cut into pieces."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any
from urllib.parse import quote

import pytest
from aiohttp import web
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jobs.serving.router.errors import ArmError
from jobs.serving.router.generation import Generation
from jobs.serving.router.limits import Timeouts
from jobs.serving.router.upstream import Upstream
from tests.jobs.serving.router.conftest import CANARY, CHAMPION, Router, running

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**20), 10**20)
    | st.floats()
    | st.text(st.characters(), max_size=20)
    | st.sampled_from(["kubectl", CHAMPION, CANARY, "user", "text", "BYTES", "INT32", "stop"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
messages = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "system", "tool"]) | json_values, "content": json_values}),
    max_size=3,
)
tensors = st.lists(
    st.fixed_dictionaries(
        {},
        optional={
            "name": st.sampled_from(["text_input", "messages", "max_tokens", "stream"]) | json_values,
            "datatype": st.sampled_from(["BYTES", "INT32", "FP32", "BOOL"]) | json_values,
            "shape": st.sampled_from([[1], [1, 1], [2, 1]]) | json_values,
            "data": st.lists(st.text(max_size=5) | json_values, max_size=3) | json_values,
            "parameters": st.fixed_dictionaries({}, optional={"binary_data_size": json_values}) | json_values,
        },
    ),
    max_size=3,
)
fields = st.fixed_dictionaries(
    {},
    optional={
        "model": st.just("kubectl") | json_values,
        "prompt": st.text(max_size=20) | json_values,
        "messages": messages | json_values,
        "text_input": st.text(max_size=20) | json_values,
        "stream": json_values,
        "stream_options": json_values,
        "stop": json_values,
        "temperature": json_values,
        "top_p": json_values,
        "max_tokens": json_values,
        "seed": json_values,
        "logprobs": json_values,
        "n": json_values,
        "tools": json_values,
        "inputs": tensors | json_values,
        "outputs": json_values,
        "parameters": json_values,
        "id": json_values,
    },
)
bodies = st.binary(max_size=300) | (fields | json_values).map(lambda document: json.dumps(document).encode())
models = st.sampled_from(["kubectl", CHAMPION, CANARY, "..", "."]) | st.text(max_size=10)
paths = st.one_of(
    st.sampled_from(["/v1/completions", "/v1/chat/completions", "/v1/models"]),
    st.builds(
        "/v2/models/{}/{}".format,
        models.map(lambda name: quote(name, safe="")),
        st.sampled_from(["infer", "generate", "generate_stream", "ready", "", "versions/1/infer"]),
    ),
    st.text(max_size=30).map(lambda path: "/" + quote(path, safe="/%")),
)
headers = st.fixed_dictionaries(
    {},
    optional={
        "Inference-Header-Content-Length": st.integers(-5, 400).map(str) | st.sampled_from(["", "x", "1e2", "9" * 40]),
        "Content-Type": st.sampled_from(["application/json", "text/plain", "application/octet-stream", "x"]),
        "Content-Encoding": st.sampled_from(["identity", "gzip"]),
        "Expect": st.sampled_from(["100-continue"]),
    },
)


@pytest.fixture(scope="module")
def asking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., tuple[int, dict[str, str], bytes]]]:
    """A router with a champion and a canary; ask it as a client does."""
    runner = asyncio.Runner()
    serving = running(tmp_path_factory.mktemp("router"), "--max-body-seconds", "1")
    router: Router = runner.run(serving.__aenter__())
    runner.run(router.route(canary=CANARY, weight=0.5))

    async def ask(method: str, path: str, body: bytes, given: dict[str, str]) -> tuple[int, dict[str, str], bytes]:
        reader, writer = await asyncio.open_connection("127.0.0.1", router.port)
        try:
            lines = [f"{method} {path} HTTP/1.1", "Host: x", "Connection: close", f"Content-Length: {len(body)}"]
            lines += [f"{name}: {value}" for name, value in given.items()]
            writer.write("\r\n".join([*lines, "", ""]).encode() + body)
            answer = await asyncio.wait_for(reader.read(), 20)
        finally:
            writer.close()
        head, _, rest = answer.partition(b"\r\n\r\n")
        if head.startswith(b"HTTP/1.1 100"):
            head, _, rest = rest.partition(b"\r\n\r\n")
        status, *pairs = head.decode().split("\r\n")
        return int(status.split()[1]), dict(pair.lower().split(": ", 1) for pair in pairs), rest

    try:
        yield lambda *request: runner.run(ask(*request))
    finally:
        runner.run(serving.__aexit__(None, None, None))
        runner.close()


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(method=st.sampled_from(["POST", "POST", "GET", "PUT"]), path=paths, body=bodies, given_headers=headers)
def test_any_request_is_answered_or_told_its_error_in_its_protocol(
    asking: Callable[..., tuple[int, dict[str, str], bytes]],
    method: str,
    path: str,
    body: bytes,
    given_headers: dict[str, str],
) -> None:
    status, answer_headers, answer = asking(method, path, body, given_headers)
    assert status == 200 or 400 <= status < 500, (status, answer)
    for release in (CHAMPION, CANARY):
        assert release.encode() not in answer or release in path or release.encode() in body
    if status == 200:
        assert not any(f"/{release}" in path for release in (CHAMPION, CANARY)), "a release's own name is reachable"
        return
    assert answer_headers["content-type"].startswith("application/json"), answer
    error = json.loads(answer)["error"]
    if path.startswith("/v1"):
        assert error["message"] and error["type"] == "invalid_request_error"
    else:
        assert isinstance(error, str) and error


texts = st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=12), min_size=1, max_size=6)


@settings(max_examples=60)
@given(pieces=texts, cuts=st.lists(st.integers(0, 2000), max_size=30), escaped=st.booleans())
def test_however_a_stream_is_cut_its_pieces_are_the_same(pieces: list[str], cuts: list[int], escaped: bool) -> None:
    events = [
        {
            "text_output": text,
            "finish_reason": "stop" if number == len(pieces) else "",
            "prompt_tokens": 1,
            "completion_tokens": number,
        }
        for number, text in enumerate(pieces, 1)
    ]
    stream = b"".join(b"data: " + json.dumps(document, ensure_ascii=escaped).encode() + b"\n\n" for document in events)
    ends = sorted({min(cut, len(stream)) for cut in cuts} | {0, len(stream)})

    async def generate_stream(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for begin, end in pairwise(ends):
            await response.write(stream[begin:end])
            # Each piece in a packet of its own, as far as the kernel goes along.
            await asyncio.sleep(0)
        return response

    assert asyncio.run(_streamed(generate_stream)) == pieces


@settings(max_examples=60)
@given(garbage=st.binary(max_size=300).filter(lambda data: b'"finish_reason"' not in data), prefix=st.booleans())
def test_garbage_from_triton_is_the_arms_error_and_nothing_else(garbage: bytes, prefix: bool) -> None:
    async def generate_stream(request: web.Request) -> web.StreamResponse:
        return web.Response(body=(b"data: " if prefix else b"") + garbage)

    with pytest.raises(ArmError):
        asyncio.run(_streamed(generate_stream))


async def _streamed(handler: Callable[[web.Request], Any]) -> list[str]:
    """Return the texts of a stream as the router reads it from this handler."""
    application = web.Application()
    application.router.add_post("/v2/models/release/generate_stream", handler)
    runner = web.AppRunner(application, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    upstream = Upstream(f"http://127.0.0.1:{runner.addresses[0][1]}", Timeouts())
    try:
        stream = await upstream.open_stream("release", Generation(prompt="x"))
        found = [stream.first.text]
        piece = stream.first
        while not piece.finish_reason:
            piece = await stream.next()
            found.append(piece.text)
        stream.close()
        return found
    finally:
        await upstream.close()
        await runner.cleanup()
