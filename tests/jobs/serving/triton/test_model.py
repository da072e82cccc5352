"""The served model, in a real tritonserver; and by itself, where Triton's own part fails."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import aiohttp
import numpy as np
import pytest

from include.artifacts.store import Store
from include.specs.base import Artifact
from jobs.serving.triton.client import NotAvailableError, TritonClient, TritonError
from jobs.serving.triton.config import Serving
from jobs.serving.triton.repository import install
from jobs.serving.triton.server import _package
from tests.jobs.serving.triton.conftest import Server, chat, release
from tests.jobs.serving.triton.engine_fixture import PROMPTS, commit_engine, make_engine


@pytest.fixture(scope="module")
def name(server: Server, engine: Artifact) -> str:
    name = install(server.folder, release(engine))
    server.load(name)
    return name


@pytest.fixture(scope="module")
def golden(engine_folder: Path) -> dict[str, str]:
    """Prompt → what the engine answers by itself, one prompt at a time."""
    rows = map(json.loads, (engine_folder / "golden.jsonl").read_text().splitlines())
    return {row["messages"][0]["content"]: row["answer"] for row in rows}


def test_a_whole_answer_is_the_engines_own(server: Server, name: str, golden: dict[str, str]) -> None:
    for prompt in PROMPTS:
        [(status, body)] = server.ask(name, chat(prompt))
        assert status == 200, body
        assert body["text_output"] == golden[prompt]
        assert body["finish_reason"] == ("length" if body["completion_tokens"] == 128 else "stop")
    assert any("보" in answer for answer in golden.values())


def test_streamed_pieces_make_the_whole_answer(server: Server, name: str, golden: dict[str, str]) -> None:
    for prompt in PROMPTS:
        [pieces] = server.stream(name, chat(prompt))
        assert "".join(piece["text_output"] for piece in pieces) == golden[prompt]
        assert [piece["finish_reason"] for piece in pieces[:-1]] == [""] * (len(pieces) - 1)
        assert pieces[-1]["finish_reason"] in ("stop", "length")
        counts = [piece["completion_tokens"] for piece in pieces]
        assert counts == sorted(counts)


def test_sixteen_streams_at_once(server: Server, name: str, golden: dict[str, str]) -> None:
    prompts = PROMPTS * 2
    for prompt, pieces in zip(prompts, server.stream(name, *map(chat, prompts)), strict=True):
        assert "".join(piece["text_output"] for piece in pieces) == golden[prompt]


def test_a_batch_mixes_lengths_limits_and_errors(server: Server, name: str, golden: dict[str, str]) -> None:
    requests = [chat(prompt, max_tokens=limit) for limit in (1, 2, 3, 128) for prompt in PROMPTS]
    requests += [{"text_input": " "}, chat("x", temperature=0.7), chat("y", temperature=0.7, top_p=0.5)]
    answers = server.ask(name, *requests)
    for (status, body), request in zip(answers[:32], requests, strict=False):
        prompt = json.loads(request["messages"])[0]["content"]
        assert status == 200
        assert body["completion_tokens"] <= request["max_tokens"]
        if request["max_tokens"] == 128 or body["finish_reason"] == "stop":
            assert body["text_output"] == golden[prompt]
        else:
            assert golden[prompt].startswith(body["text_output"].rstrip("\ufffd"))
    assert answers[32][0] == 400
    assert [status for status, _ in answers[33:]] == [200, 200]


@pytest.mark.parametrize("temperature", [1e-38, 0.0099])
def test_a_temperature_next_to_nothing_is_greedy(
    server: Server, name: str, golden: dict[str, str], temperature: float
) -> None:
    for prompt in PROMPTS:
        [(status, body)] = server.ask(name, chat(prompt, temperature=temperature, top_p=0.9))
        assert (status, body["text_output"]) == (200, golden[prompt])


def test_a_stop_string_ends_the_answer_before_it(server: Server, name: str, golden: dict[str, str]) -> None:
    prompt = max(golden, key=lambda prompt: len(golden[prompt]))
    answer = golden[prompt]
    stop = answer[11:17]
    expected = answer[: answer.index(stop)].rstrip()
    request = chat(prompt, stop=json.dumps(["never there", stop]))
    [(_, whole)] = server.ask(name, request)
    [pieces] = server.stream(name, request)
    assert whole["text_output"] == "".join(piece["text_output"] for piece in pieces) == expected
    assert whole["finish_reason"] == pieces[-1]["finish_reason"] == "stop"
    assert whole["completion_tokens"] < 128


@pytest.mark.parametrize(
    ("request_", "says"),
    [
        ({"max_tokens": 3}, "give either text_input or messages"),
        ({"text_input": "a", "messages": "[]"}, "not both"),
        ({"text_input": " \n"}, "the prompt is empty"),
        (chat(" "), "the prompt is empty"),
        ({"text_input": "pod " * 600}, "shorten it"),
        ({"text_input": "pod " * 60, "max_tokens": 128}, None),
        ({"text_input": "x" * 280, "max_tokens": 128}, "ask for at most"),
        ({"messages": "[{"}, "messages: not JSON"),
        ({"messages": "[]"}, "at least one"),
        ({"messages": '[{"role": "user"}]'}, "messages[0]"),
        ({"messages": '[{"role": "tool", "content": "a"}]'}, "'tool'"),
        ({"messages": '[{"role": "user", "content": 3}]'}, "not text"),
        ({"messages": '[{"role": "assistant", "content": "a"}]'}, "the assistant's own"),
        (chat("a", max_tokens=0), "ask for 1 to 128"),
        (chat("a", max_tokens=129), "ask for 1 to 128"),
        (chat("a", temperature=-1.0), "temperature"),
        (chat("a", temperature=0.5, top_p=0.0), "top_p"),
        (chat("a", stop='"x"'), "stop"),
        (chat("a", stop='[""]'), "stop"),
        (chat("a", stop=json.dumps(["x"] * 17)), "at most 16"),
    ],
)
def test_bad_input_is_the_clients_mistake(
    server: Server, name: str, request_: dict[str, Any], says: str | None
) -> None:
    [(status, body)] = server.ask(name, request_)
    if says is None:
        assert status == 200, body
        return
    assert status == 400
    assert body["error"].startswith("INVALID_ARGUMENT: ")
    assert says in body["error"]
    [pieces] = server.stream(name, request_)
    assert [piece["error"] for piece in pieces] == [body["error"]]


def ask_behind_another(server: Server, name: str, count: int) -> list[tuple[int, dict[str, Any]]]:
    """Whole answers, asked for once the model is at work on a stream of 4,000 tokens, which must end well."""

    async def run() -> list[tuple[int, dict[str, Any]]]:
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector) as session:

            async def ask(index: int) -> tuple[int, dict[str, Any]]:
                async with session.post(server.url(name), json=chat(f"pod {index}", max_tokens=2)) as response:
                    return response.status, json.loads(await response.text())

            body = chat("pods", max_tokens=4000, stream=True)
            async with session.post(server.url(name, "generate_stream"), json=body) as stream:
                await stream.content.readline()
                asking = [asyncio.create_task(ask(index)) for index in range(count)]
                pieces = [json.loads(line[6:]) async for line in stream.content if line.startswith(b"data: ")]
            assert pieces[-1]["completion_tokens"] == 4000
            return await asyncio.gather(*asking)

    return asyncio.run(run())


def test_a_full_queue_turns_requests_away(server: Server, endless: Artifact) -> None:
    name = install(server.folder, release(endless, 2), serving=Serving(max_batch=1, queue_size=2, queue_seconds=60))
    server.load(name)
    answers = ask_behind_another(server, name, 12)
    turned_away = [body["error"] for status, body in answers if status != 200]
    assert 0 < len(turned_away) <= 10
    assert all("maximum queue size" in error for error in turned_away)
    assert all(body["completion_tokens"] == 2 for status, body in answers if status == 200)


def test_a_request_that_waits_too_long_is_turned_away(server: Server, endless: Artifact) -> None:
    name = install(server.folder, release(endless, 5), serving=Serving(max_batch=1, queue_seconds=0.5))
    server.load(name)
    turned_away = [body["error"] for status, body in ask_behind_another(server, name, 6) if status != 200]
    assert turned_away
    assert all("Request timeout expired" in error for error in turned_away)


def test_an_unload_lets_requests_in_flight_end(server: Server, endless: Artifact) -> None:
    name = install(server.folder, release(endless, 6), serving=Serving(max_batch=4))
    server.load(name)

    async def unload_amidst() -> list[list[dict[str, Any]]]:
        unloading: list[asyncio.Task[None]] = []

        async def stream(session: aiohttp.ClientSession, client: TritonClient, prompt: str) -> list[dict[str, Any]]:
            body = chat(prompt, max_tokens=500, stream=True)
            pieces = []
            try:
                async with session.post(server.url(name, "generate_stream"), json=body) as response:
                    async for line in response.content:
                        if line.startswith(b"data: "):
                            pieces.append(json.loads(line[6:]))
                            if not unloading:
                                unloading.append(asyncio.create_task(client.unload(name)))
            except aiohttp.ClientResponseError as error:
                # tritonserver 2.51 on a busy machine was seen to send a stream's first piece before its status line.
                assert "Bad status line" in error.message
            return pieces

        async with TritonClient(f"127.0.0.1:{server.grpc}") as client, aiohttp.ClientSession() as session:
            streams = await asyncio.gather(*(stream(session, client, prompt) for prompt in PROMPTS))
            await unloading[0]
            assert (await client.states())[name] == "UNAVAILABLE"
            return streams

    ended = [pieces[-1].get("completion_tokens") for pieces in asyncio.run(unload_amidst()) if pieces]
    assert len(ended) > len(PROMPTS) / 2 and set(ended) == {500}


def test_a_client_that_leaves_its_stream_frees_its_place(server: Server, endless: Artifact) -> None:
    name = install(server.folder, release(endless, 3), serving=Serving(max_batch=1))
    server.load(name)
    started = time.monotonic()
    [pieces] = server.stream(name, chat("pods", max_tokens=4000))
    whole_seconds = time.monotonic() - started
    assert pieces[-1]["completion_tokens"] == 4000

    async def leave_then_ask() -> float:
        async with aiohttp.ClientSession() as session:
            for _ in range(3):
                body = chat("pods", max_tokens=4000, stream=True)
                async with session.post(server.url(name, "generate_stream"), json=body) as response:
                    await response.content.readline()
                    response.close()
            started = time.monotonic()
            async with session.post(server.url(name), json=chat("pods", max_tokens=1)) as response:
                assert response.status == 200
            return time.monotonic() - started

    # The three that left would take as long each.
    assert asyncio.run(leave_then_ask()) < whole_seconds

    async def unload(client: TritonClient) -> None:
        await client.unload(name, timeout=10)

    server.use(unload)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [("weights", "invalid payload size"), ("hardware", "built with avx9000"), ("tokenizer", "Model missing")],
)
def test_an_engine_that_does_not_load_says_why(
    server: Server,
    name: str,
    engine_store: Store,
    tmp_path: Path,
    golden: dict[str, str],
    damage: str,
    reason: str,
) -> None:
    folder = make_engine(tmp_path / "engine", seed=5)
    if damage == "weights":
        weights = folder / "engine" / "model.bin"
        weights.write_bytes(weights.read_bytes()[:1000])
    elif damage == "hardware":
        build = json.loads((folder / "build.json").read_text())
        (folder / "build.json").write_text(json.dumps({**build, "cpu_flags": ["avx9000"]}))
    else:
        (folder / "tokenizer.json").write_text("{}")
    broken = install(server.folder, release(commit_engine(engine_store, f"engine-{damage}", folder), 4))

    async def work(client: TritonClient) -> None:
        loading = asyncio.create_task(client.load(broken))
        while not loading.done():
            answer = await client.generate(name, messages=[{"role": "user", "content": PROMPTS[0]}])
            assert answer.text == golden[PROMPTS[0]]
        with pytest.raises(TritonError, match=reason) as error:
            await loading
        assert str(error.value).startswith(f"{broken} does not load: ")
        with pytest.raises(NotAvailableError):
            await client.generate(broken, text="a")

    server.use(work)


@pytest.fixture(scope="module")
def model(server: Server, name: str) -> ModuleType:
    """The module as it lies in a version folder, imported here."""
    folder = server.folder / "models" / name / "1"
    sys.path[:0] = [str(_package() / "tritonserver" / "backends" / "python")]
    spec = importlib.util.spec_from_file_location("served_model", folder / "model.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Sender:
    """Triton's part of one answer: refuses the first `fails` responses, and keeps the others."""

    def __init__(self, fails: int = 0) -> None:
        self._fails = fails
        self.said: list[SimpleNamespace] = []
        self.ended = threading.Event()

    def send(self, response: SimpleNamespace, flags: int = 0) -> None:
        if self._fails:
            self._fails -= 1
            raise RuntimeError("no shared memory left")
        self.said.append(response)
        if flags:
            self.ended.set()

    def is_cancelled(self) -> bool:
        return False


class Request:
    """One request as the backend gives it to the model."""

    def __init__(self, sender: Sender, **values: Any) -> None:
        self.values = values
        self.get_response_sender = lambda: sender


@pytest.fixture
def backend(model: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the stub process puts into the backend's Python module."""

    def tensor(name: str, array: Any) -> SimpleNamespace:
        return SimpleNamespace(name=name, as_numpy=lambda: array)

    def given(request: Request, name: str) -> Any:
        value = request.values.get(name)
        return None if value is None else tensor(name, np.array([[value]], np.object_))

    def error(message: str, code: int) -> SimpleNamespace:
        return SimpleNamespace(message=message, code=code)

    error.INTERNAL, error.UNAVAILABLE, error.INVALID_ARG, error.CANCELLED = range(4)  # type: ignore[attr-defined]
    parts = {
        "Tensor": tensor,
        "get_input_tensor_by_name": given,
        "TritonError": error,
        "InferenceResponse": lambda output_tensors, error=None: SimpleNamespace(tensors=output_tensors, error=error),
        "TRITONSERVER_RESPONSE_COMPLETE_FINAL": 1,
    }
    monkeypatch.setattr(model, "pb_utils", SimpleNamespace(**parts))


Start = Callable[..., Any]


@pytest.fixture
def start(model: ModuleType, backend: None, engine_folder: Path) -> Iterator[Start]:
    """Starts the model on the real engine, in this process."""
    started = []

    def start(**parameters: Any) -> Any:
        values = {"engine": engine_folder, "threads": 1, "queue_size": 8, "queue_seconds": 10, **parameters}
        config = {
            "parameters": {name: {"string_value": str(value)} for name, value in values.items()},
            "max_batch_size": 4,
        }
        served = model.TritonPythonModel()
        served.initialize({"model_config": json.dumps(config)})
        started.append(served)
        return served

    yield start
    for served in started:
        served.finalize()


def ask(served: Any, sender: Sender, **more: Any) -> None:
    served.execute([Request(sender, text_input=b"pods", **more)])


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_cannot_be_sent_is_told_as_failed(start: Start, stream: bool) -> None:
    served, sender = start(), Sender(fails=1)
    ask(served, sender, stream=stream, max_tokens=1)
    assert sender.ended.wait(10)
    assert sender.said[-1].error.message == "INTERNAL: no shared memory left"


@pytest.mark.parametrize("bad", [{}, {"text_input": b" "}])
def test_a_client_that_cannot_be_told_anything_harms_nobody_else(start: Start, bad: dict[str, bytes]) -> None:
    served, lost, sender = start(), Sender(fails=1000), Sender()
    served.execute([Request(lost, **{"text_input": b"pods", **bad}), Request(sender, text_input=b"pods")])
    if not bad:
        assert sender.ended.wait(10)
        sender = Sender()
        ask(served, sender)
    assert sender.ended.wait(10)
    assert sender.said[-1].error is None


def test_one_that_waited_too_long_and_cannot_be_told_harms_nobody_else(start: Start) -> None:
    served, sender = start(queue_seconds=0), Sender()
    ask(served, Sender(fails=1000))
    ask(served, sender)
    assert sender.ended.wait(10)
    assert "Request timeout expired" in sender.said[-1].error.message


def test_the_process_ends_with_the_thread_that_answers(
    model: ModuleType, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that takes requests and never answers looks healthy to Triton."""
    ended = threading.Event()
    codes: list[int] = []

    def exit_now(code: int) -> None:
        codes.append(code)
        ended.set()

    def breaks(answers: Any) -> None:
        raise SystemExit

    served = start()
    monkeypatch.setattr(model.os, "_exit", exit_now)
    monkeypatch.setattr(served, "generate", breaks)
    ask(served, Sender())
    assert ended.wait(10)
    assert codes == [1]
