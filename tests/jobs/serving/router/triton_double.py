"""A stand-in for Triton's `generate` extension that can do what a real server only does when it is broken."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from aiohttp import web

PIECES = ("one ", "two ", "three")


def _answer(**fields: Any) -> bytes:
    whole = {"text_output": "x", "finish_reason": "stop", "prompt_tokens": 7, "completion_tokens": 3}
    return b"data: " + json.dumps({**whole, **fields}).encode() + b"\n\n"


GARBAGE = {
    "endless_line": b"data: " + b"x" * 3_000_000,
    "deep": b"data: " + b"[" * 100_000 + b"\n\n",
    "half_a_surrogate": _answer(text_output="\ud800"),
    "too_many_tokens": _answer(completion_tokens=2**31),
    "fewer_than_no_tokens": _answer(completion_tokens=-1),
    "no_utf8": b'data: {"text_output": "\xff"}\n\n',
}
"""What no model answers; for streams with the `data: ` that others lack."""


class TritonDouble:
    """Answers as each release's mode says.

    Modes: `echo` (the default), `empty`, `slow`, `hang`, `error_500`, `error_200`, `busy`, `absent`, `rejects`,
    `nonsense`, `cut`, `cut_once`, `fails_on_bad`, and the keys of GARBAGE;
    and for streams `error_midway`, `cut_midway`, `ends_midway`, `pause_midway`, `flood`.

    Attributes:
        asked: (release, body) of every request.
        broken_off: releases whose client went away before the answer's end.
        gone: set whenever one did.
    """

    def __init__(self) -> None:
        self.modes: dict[str, str] = {}
        self.delay = 0.3
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.broken_off: list[str] = []
        self.gone = asyncio.Event()
        self.begun = asyncio.Event()
        application = web.Application()
        application.add_routes(
            [
                web.post("/v2/models/{release}/generate", self._generate),
                web.post("/v2/models/{release}/generate_stream", self._stream),
                web.get("/v2/models/{release}/ready", self._ready),
                web.get("/v2/health/ready", self._ready),
            ]
        )
        self._runner = web.AppRunner(application, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)

    async def start(self, port: int = 0) -> int:
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", port).start()
        return self._runner.addresses[0][1]

    async def stop(self) -> None:
        await self._runner.cleanup()

    async def _ready(self, request: web.Request) -> web.Response:
        return web.Response(status=400 if self.modes.get(request.match_info.get("release", "")) == "absent" else 200)

    async def _generate(self, request: web.Request) -> web.StreamResponse:
        release, body, mode = await self._begin(request)
        if mode == "cut_once":
            self.modes[release] = "echo"
        if mode in ("cut", "cut_once"):
            return await self._cut(request)
        if mode == "fails_on_bad":
            # The others take longer.
            mode = "error_500" if prompt_of(body) == "bad" else "slow"
        if mode in GARBAGE:
            return web.Response(body=GARBAGE[mode].removeprefix(b"data: "), content_type="application/json")
        return await self._before(release, mode) or web.json_response(answer(release, prompt_of(body), mode))

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        release, _, mode = await self._begin(request)
        if mode == "cut":
            return await self._cut(request)
        if mode in GARBAGE:
            return web.Response(body=GARBAGE[mode], content_type="text/event-stream")
        failed = await self._before(release, mode)
        if failed is not None and failed.status != 200:
            return failed
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        if failed is not None:
            await response.write(b"data: " + failed.body + b"\n\n")
            return response
        try:
            for number, text in enumerate(PIECES, 1):
                last = number == len(PIECES)
                piece = {
                    "model_name": release,
                    "text_output": "" if mode == "empty" else text,
                    "finish_reason": "stop" if last else "",
                    "prompt_tokens": 7,
                    "completion_tokens": number,
                }
                await response.write(b"data: " + json.dumps(piece).encode() + b"\n\n")
                self.begun.set()
                if not last and await self._midway(mode, request, response):
                    return response
        except (asyncio.CancelledError, ConnectionError):
            self._went(release)
            raise
        return response

    async def _begin(self, request: web.Request) -> tuple[str, dict[str, Any], str]:
        release = request.match_info["release"]
        body = await request.json()
        self.asked.append((release, body))
        return release, body, self.modes.get(release, "echo")

    async def _before(self, release: str, mode: str) -> web.Response | None:
        """Return the response that replaces an answer, if any."""
        if mode == "slow":
            await asyncio.sleep(self.delay)
        if mode == "hang":
            self.begun.set()
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                self._went(release)
                raise
        failure = {
            "error_500": (500, f"in model {release}: INTERNAL: the engine fell over"),
            "error_200": (200, f"in model {release}: INTERNAL: the engine fell over"),
            "busy": (503, f"Exceeds maximum queue size of model {release}"),
            "absent": (404, f"Request for unknown model: '{release}' is not found"),
            "rejects": (500, f"INVALID_ARGUMENT: the prompt of {release} is too long"),
        }.get(mode)
        if failure is not None:
            return web.json_response({"error": failure[1]}, status=failure[0])
        if mode == "nonsense":
            return web.json_response({"text_output": 5})
        return None

    async def _cut(self, request: web.Request) -> web.StreamResponse:
        """Headers and a beginning that is of no use, then the connection breaks."""
        response = web.StreamResponse(headers={"Content-Length": "1000"})
        await response.prepare(request)
        await response.write(b'data: {"text_output": "never')
        request.transport.close()
        return response

    async def _midway(self, mode: str, request: web.Request, response: web.StreamResponse) -> bool:
        """Return whether the stream ends after its first piece."""
        if mode == "error_midway":
            await response.write(b'data: {"error": "INTERNAL: the engine fell over"}\n\n')
            return True
        if mode == "cut_midway":
            request.transport.abort()
            return True
        while mode == "flood":
            piece = {"text_output": "x" * 10_000, "finish_reason": "", "prompt_tokens": 7, "completion_tokens": 1}
            await response.write(b"data: " + json.dumps(piece).encode() + b"\n\n")
        if mode == "pause_midway":
            await asyncio.sleep(60)
        return mode == "ends_midway"

    def _went(self, release: str) -> None:
        self.broken_off.append(release)
        self.gone.set()


def prompt_of(body: dict[str, Any]) -> str:
    return body["text_input"] if "text_input" in body else json.loads(body["messages"])[-1]["content"]


def answer(release: str, prompt: str, mode: str = "echo") -> dict[str, Any]:
    return {
        "model_name": release,
        "model_version": "1",
        "text_output": "" if mode == "empty" else f"echo {prompt}",
        "finish_reason": "stop",
        "prompt_tokens": 7,
        "completion_tokens": 3,
    }
