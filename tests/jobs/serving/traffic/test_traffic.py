"""The generator against a small server that speaks both protocols, and fails in every way that a server can."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from include.home import PROJECT
from include.laptop.datasets import ALL_INTENTS
from jobs.demo.requests.intents import COMMANDS
from jobs.serving.traffic import generator
from jobs.serving.traffic.client import Answer, send
from jobs.serving.traffic.counts import Counts
from jobs.serving.traffic.generator import generate
from jobs.serving.traffic.requests import SHARES, Form, as_text, draw_requests, make_request

Handler = Callable[[web.Request], Coroutine[Any, Any, web.StreamResponse]]
ANSWER = "kubectl logs checkout -n prod"
FORMS: list[Form] = list(SHARES)


async def sound(request: web.Request) -> web.StreamResponse:
    """Answers as the router does, to every form."""
    body = await request.json()
    openai = request.path.startswith("/v1")
    chat = request.path.endswith("chat/completions")
    if not body.get("stream"):
        if not openai:
            return web.json_response({"text_output": ANSWER, "finish_reason": "stop"})
        choice = {"message": {"role": "assistant", "content": ANSWER}} if chat else {"text": ANSWER}
        return web.json_response({"choices": [{"index": 0, **choice, "finish_reason": "stop"}]})
    pieces = ANSWER.partition("logs")
    if openai:
        events = [{"choices": [{"delta": {"content": piece}} if chat else {"text": piece}]} for piece in pieces]
        return await stream(request, *map(json.dumps, events), json.dumps({"choices": []}), "[DONE]")
    events = [{"text_output": piece, "finish_reason": ""} for piece in pieces]
    return await stream(request, *map(json.dumps, events), json.dumps({"text_output": "", "finish_reason": "stop"}))


async def stream(request: web.Request, *events: str) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    for event in events:
        await response.write(f"data: {event}\n\n".encode())
    return response


@asynccontextmanager
async def served(handler: Handler) -> AsyncIterator[str]:
    app = web.Application()
    app.router.add_post("/{path:.*}", handler)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


def answer_of(handler: Handler, form: Form, timeout: float = 10) -> Answer:
    async def ask() -> Answer:
        async with served(handler) as url, aiohttp.ClientSession() as session:
            return await send(session, url, make_request("kubectl", form, "logs of checkout, prod"), timeout)

    return asyncio.run(ask())


@pytest.mark.parametrize("form", FORMS)
def test_a_sound_answer_of_every_form(form: Form) -> None:
    answer = answer_of(sound, form)
    assert (answer.text, answer.failure, answer.status) == (ANSWER, None, 200)
    assert (answer.first_token is not None) == form.endswith("_stream")


async def refused(request: web.Request) -> web.StreamResponse:
    return web.json_response({"error": {"message": "no capacity"}}, status=500)


async def error_in_a_200(request: web.Request) -> web.StreamResponse:
    body = json.dumps({"error": "INTERNAL: broken"})
    return await stream(request, body) if (await request.json()).get("stream") else web.Response(text=body)


async def cut(request: web.Request) -> web.StreamResponse:
    """Closes the connection in the middle of the body."""
    response = web.StreamResponse(headers={"Content-Length": "1000"})
    await response.prepare(request)
    await response.write(b'data: {"choices": [{"delta": {"content": "kub"}}]}\n\n')
    assert request.transport is not None
    request.transport.close()
    return response


async def ends_early(request: web.Request) -> web.StreamResponse:
    return await stream(request, json.dumps({"text_output": "kubectl", "finish_reason": ""}))


async def hangs(request: web.Request) -> web.StreamResponse:
    await asyncio.sleep(30)
    return web.Response()


async def page(request: web.Request) -> web.StreamResponse:
    return web.Response(text="<html>")


async def other_json(request: web.Request) -> web.StreamResponse:
    return web.json_response([1, 2])


@pytest.mark.parametrize(
    ("handler", "form", "failure"),
    [
        (refused, "chat", "status_500"),
        (refused, "chat_stream", "status_500"),
        (error_in_a_200, "generate", "error_body"),
        (error_in_a_200, "generate_stream", "error_body"),
        (error_in_a_200, "chat_stream", "error_body"),
        (cut, "chat_stream", "broken_body"),
        (cut, "chat", "broken_body"),
        (ends_early, "generate_stream", "broken_stream"),
        (ends_early, "completion_stream", "broken_stream"),
        (hangs, "chat", "timed_out"),
        (page, "completion", "not_json"),
        (other_json, "chat", "not_an_answer"),
    ],
)
def test_a_failure_is_called_by_its_name(handler: Handler, form: Form, failure: str) -> None:
    assert answer_of(handler, form, timeout=1).failure == failure


MALFORMED: list[tuple[Form, Any]] = [
    *[
        ("chat", {"choices": choices})
        for choices in (3, None, "", {"a": 1}, [3], ["text"], [{"message": "text"}], [{"message": {"content": [1]}}])
    ],
    ("chat", None),
    ("completion", {"choices": [{"text": 7}]}),
    ("completion", {"choices": [{"text": 0}]}),
    ("generate", {"text_output": None}),
    ("generate", {"text_output": ["kubectl"]}),
]


@pytest.mark.parametrize(("form", "document"), MALFORMED)
@pytest.mark.parametrize("streams", [False, True])
def test_a_malformed_200_is_not_an_answer(form: Form, document: Any, streams: bool) -> None:
    async def malformed(request: web.Request) -> web.StreamResponse:
        return await stream(request, json.dumps(document), "[DONE]") if streams else web.json_response(document)

    asked: Form = f"{form}_stream" if streams else form  # type: ignore[assignment]
    assert answer_of(malformed, asked).failure == "not_an_answer"


def test_events_without_text_are_sound() -> None:
    """OpenAI's first event has nothing but the role, and its last one the finish reason."""

    async def silent(request: web.Request) -> web.StreamResponse:
        deltas: list[dict[str, Any]] = [{"role": "assistant", "content": None}, {"role": "assistant"}, {}]
        return await stream(request, *(json.dumps({"choices": [{"delta": delta}]}) for delta in deltas), "[DONE]")

    answer = answer_of(silent, "chat_stream")
    assert (answer.text, answer.failure, answer.first_token) == ("", None, None)


def test_nobody_listening_is_a_failure_too() -> None:
    async def ask() -> Answer:
        async with aiohttp.ClientSession() as session:
            return await send(session, "http://127.0.0.1:1", make_request("kubectl", "chat", "hi"), 5)

    assert asyncio.run(ask()).failure == "connection"


def test_unavailable_counts_apart_until_the_first_answer() -> None:
    counts = Counts()
    request = make_request("kubectl", "chat", "hi")
    missing, sound_one = Answer("", "status_404", 0.1, status=404), Answer("kubectl", None, 0.1, status=200)
    for answer in (missing, sound_one, missing):
        counts.sent(request)
        counts.ended(request, answer)
    found = counts.as_dict()
    assert {key: found[key] for key in ("sent", "answered", "unavailable", "failed", "in_flight")} == {
        "sent": 3,
        "answered": 1,
        "unavailable": 1,
        "failed": 1,
        "in_flight": 0,
    }
    assert found["failures"] == {"status_404": 1}


def test_requests_are_the_same_for_a_seed_and_of_every_form_and_language() -> None:
    first, again = (list(islice(draw_requests("kubectl", 3), 500)) for _ in range(2))
    assert first == again != list(islice(draw_requests("kubectl", 4), 500))
    assert set(Counter(request.form for request in first)) == set(FORMS)
    prompts = [request.body["messages"][0]["content"] for request in first if request.form == "chat"]
    korean = [prompt for prompt in prompts if any("가" <= letter <= "힣" for letter in prompt)]
    assert 0.3 < len(korean) / len(prompts) < 0.7


def test_the_demo_asks_for_every_kind_of_request_that_there_is() -> None:
    assert tuple(COMMANDS) == ALL_INTENTS


def test_a_bare_prompt_is_what_the_chat_template_makes() -> None:
    """Against the template itself, rendered by Jinja with its training marks taken out."""
    import jinja2

    template = (PROJECT / "include" / "templates" / "kubectl.jinja").read_text()
    template = template.replace("{%- generation -%}", "").replace("{%- endgeneration -%}", "")
    messages = [{"role": "user", "content": "logs of checkout"}]
    assert as_text("logs of checkout") == jinja2.Template(template).render(
        messages=messages, add_generation_prompt=True
    )


def test_arrivals_do_not_wait_for_answers(tmp_path: Path) -> None:
    """Each answer takes a second; a closed loop could not send more than a few."""

    async def slow(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(1)
        return await sound(request)

    async def load() -> Counts:
        async with served(slow) as url:
            return await generate(url, "kubectl", rate=100, seconds=2, out=tmp_path / "counts.json")

    found = asyncio.run(load()).as_dict()
    assert 140 < found["sent"] < 270
    assert (found["answered"], found["failed"], found["in_flight"]) == (found["sent"], 0, 0)
    assert found["total"]["p50"] >= 1
    assert json.loads((tmp_path / "counts.json").read_text())["sent"] == found["sent"]


def test_what_hangs_to_the_end_has_failed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(generator, "DRAIN", 0.2)

    async def load() -> Counts:
        async with served(hangs) as url:
            return await generate(url, "kubectl", rate=50, seconds=0.5, out=tmp_path / "counts.json")

    found = asyncio.run(load()).as_dict()
    assert found["sent"] > 0
    assert (found["failed"], found["in_flight"]) == (found["sent"], 0)
    assert found["failures"] == {"unanswered": found["sent"]}
    assert json.loads((tmp_path / "counts.json").read_text())["failures"] == found["failures"]


def test_sigterm_ends_it_with_every_answer_counted(tmp_path: Path) -> None:
    out = tmp_path / "counts.json"

    async def run() -> tuple[int, str]:
        async with served(sound) as url:
            process = await asyncio.create_subprocess_exec(
                *command("--url", url, "--rate", "200", "--out", str(out)), stdout=subprocess.PIPE, cwd=PROJECT
            )
            deadline = time.monotonic() + 20
            while not out.exists() or json.loads(out.read_text())["answered"] < 50:
                assert time.monotonic() < deadline
                await asyncio.sleep(0.05)
            process.send_signal(signal.SIGTERM)
            output, _ = await process.communicate()
            return process.returncode or 0, output.decode()

    code, output = asyncio.run(run())
    found = json.loads(out.read_text())
    assert code == 0
    assert found["sent"] == found["answered"] >= 50
    assert output.splitlines()[-1].startswith(f"ended sent={found['sent']} ")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--url", "http://127.0.0.1:1", "--rate", "0"], "--rate is 0"),
        (["--url", "http://127.0.0.1:1", "--rate", "nan"], "--rate is nan"),
        (["--url", "127.0.0.1:1", "--rate", "1"], "--url is '127.0.0.1:1'"),
        (["--url", "http://127.0.0.1:1", "--rate", "1", "--out", "/no/such/folder/x"], "--out is /no/such"),
    ],
)
def test_a_bad_setting_is_one_sentence(arguments: list[str], words: str) -> None:
    result = subprocess.run(command(*arguments), capture_output=True, text=True, cwd=PROJECT, env=os.environ)
    assert result.returncode == 64
    assert result.stderr.startswith("error: ") and words in result.stderr


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "jobs.serving.traffic", "--model", "kubectl", *arguments]
