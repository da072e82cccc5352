"""The API for clients: OpenAI's protocol below /v1, the V2 inference protocol below /v2, and nothing of Triton."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

from aiohttp import web

from jobs.serving.log import log, log_trace
from jobs.serving.router import openai_protocol, v2_protocol
from jobs.serving.router.dispatch import Dispatcher
from jobs.serving.router.errors import RequestError
from jobs.serving.router.generation import Piece, read_object
from jobs.serving.router.limits import Limits, Timeouts
from jobs.serving.router.targets import Targets
from jobs.serving.router.upstream import Upstream

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_NOT_SERVED = "there is no such path here: /v1 speaks OpenAI's protocol, /v2 the V2 inference protocol"


class PublicApi:
    """The handlers of the clients' API."""

    def __init__(
        self, targets: Targets, dispatcher: Dispatcher, upstream: Upstream, limits: Limits, timeouts: Timeouts
    ) -> None:
        self._targets = targets
        self._dispatcher = dispatcher
        self._upstream = upstream
        self._limits = limits
        self._timeouts = timeouts
        self._reading = 0

    def application(self) -> web.Application:
        application = web.Application(client_max_size=self._limits.body_bytes, middlewares=[_errors])
        model = "/v2/models/{model}"
        application.add_routes(
            [
                web.post("/v1/completions", self._completions),
                web.post("/v1/chat/completions", self._chat),
                web.get("/v1/models", self._list_models, allow_head=False),
                web.get("/v1/models/{model}", self._show_model, allow_head=False),
                web.post(f"{model}/infer", self._infer),
                web.post(f"{model}/generate", self._generate),
                web.post(f"{model}/generate_stream", self._generate_stream),
                web.get(model, self._metadata, allow_head=False),
                web.get(f"{model}/ready", self._model_ready, allow_head=False),
                web.get("/v2", self._server_metadata, allow_head=False),
                web.get("/v2/health/live", self._live, allow_head=False),
                web.get("/v2/health/ready", self._ready, allow_head=False),
            ]
        )
        return application

    async def _completions(self, request: web.Request) -> web.StreamResponse:
        return await self._openai("completions", request)

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        return await self._openai("chat", request)

    async def _openai(self, endpoint: openai_protocol.Endpoint, request: web.Request) -> web.StreamResponse:
        asked = openai_protocol.read_request(endpoint, read_object(await self._body(request)), self._limits)
        target = self._targets.find_public(asked.model)
        answer = openai_protocol.Answer(asked)
        if asked.stream:
            return await self._stream(
                request,
                self._dispatcher.stream(target, asked.generation),
                answer.piece,
                opening=answer.opening(),
                ending=openai_protocol.DONE,
                error=openai_protocol.error,
            )
        piece = await self._dispatcher.answer(target, asked.generation)
        return web.Response(body=answer.whole(piece), content_type="application/json")

    async def _list_models(self, request: web.Request) -> web.Response:
        return _json(openai_protocol.models([target.name for target in self._targets if target.route.champion]))

    async def _show_model(self, request: web.Request) -> web.Response:
        return _json(openai_protocol.model(self._targets.find_public(request.match_info["model"]).name))

    async def _infer(self, request: web.Request) -> web.Response:
        target = self._targets.find_public(request.match_info["model"])
        length = request.headers.get(v2_protocol.HEADER)
        asked = v2_protocol.read_infer(await self._body(request), length, self._limits)
        if len(asked.rows) == 1:
            answers = [await self._dispatcher.answer(target, asked.rows[0])]
        else:
            answers = await self._dispatcher.answer_rows(target, asked.rows)
        body, json_length = v2_protocol.write_infer(target.name, asked, answers)
        if json_length is None:
            return web.Response(body=body, content_type="application/json")
        return web.Response(
            body=body, content_type="application/octet-stream", headers={v2_protocol.HEADER: str(json_length)}
        )

    async def _generate(self, request: web.Request) -> web.Response:
        target = self._targets.find_public(request.match_info["model"])
        asked = v2_protocol.read_generate(await self._body(request), self._limits, may_stream=False)
        return _json(v2_protocol.write_generate(target.name, await self._dispatcher.answer(target, asked)))

    async def _generate_stream(self, request: web.Request) -> web.StreamResponse:
        target = self._targets.find_public(request.match_info["model"])
        asked = v2_protocol.read_generate(await self._body(request), self._limits, may_stream=True)
        return await self._stream(
            request,
            self._dispatcher.stream(target, asked),
            lambda piece: openai_protocol.event(v2_protocol.write_generate(target.name, piece)),
            error=lambda problem: {"error": problem.message},
        )

    async def _metadata(self, request: web.Request) -> web.Response:
        return _json(v2_protocol.model_metadata(self._targets.find_public(request.match_info["model"]).name))

    async def _model_ready(self, request: web.Request) -> web.Response:
        champion = self._targets.find_public(request.match_info["model"]).route.champion
        if champion is None or not await self._upstream.ready(champion):
            raise RequestError(503, "the model cannot answer now: try again", retry_after=1)
        return web.Response()

    async def _server_metadata(self, request: web.Request) -> web.Response:
        return _json(v2_protocol.SERVER_METADATA)

    async def _live(self, request: web.Request) -> web.Response:
        return web.Response()

    async def _ready(self, request: web.Request) -> web.Response:
        if not await self._upstream.ready():
            raise RequestError(503, "the inference server cannot answer now: try again", retry_after=1)
        return web.Response()

    async def _body(self, request: web.Request) -> bytes:
        if self._reading >= self._limits.bodies:
            raise self._dispatcher.turn_away(f"{self._limits.bodies} bodies are being read already")
        self._reading += 1
        try:
            async with asyncio.timeout(self._limits.body_seconds):
                return await request.read()
        except TimeoutError:
            raise RequestError(408, f"the body did not arrive within {self._limits.body_seconds:g} s") from None
        except web.RequestPayloadError:
            raise RequestError(400, "the body is not packed as its Content-Encoding says: send it as it is") from None
        finally:
            self._reading -= 1

    async def _stream(
        self,
        request: web.Request,
        pieces: AsyncGenerator[Piece, None],
        write: Callable[[Piece], bytes],
        *,
        error: Callable[[RequestError], Any],
        opening: bytes = b"",
        ending: bytes = b"",
    ) -> web.StreamResponse:
        response = web.StreamResponse(
            headers={"Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-cache"}
        )
        async with aclosing(pieces):
            # Nothing is sent before the first piece, so that a failure until then has a status of its own.
            first = await anext(pieces)
            await response.prepare(request)
            try:
                await self._send(response, opening + write(first))
                async for piece in pieces:
                    if chunk := write(piece):
                        await self._send(response, chunk)
                if ending:
                    await self._send(response, ending)
            except RequestError as problem:
                await self._send(response, openai_protocol.event(error(problem)))
            except (ConnectionError, TimeoutError):
                # The client has gone, or does not read.
                response.force_close()
                if request.transport is not None:
                    request.transport.abort()
                return response
        await response.write_eof()
        return response

    async def _send(self, response: web.StreamResponse, chunk: bytes) -> None:
        async with asyncio.timeout(self._timeouts.write):
            await response.write(chunk)


@web.middleware
async def _errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn every error into a response in the format of the protocol that the path belongs to."""
    try:
        return await handler(request)
    except RequestError as error:
        problem = error
    except web.HTTPRequestEntityTooLarge:
        problem = RequestError(413, f"the body is larger than {request.client_max_size} bytes: send less")
    except web.HTTPMethodNotAllowed as error:
        problem = RequestError(405, f"{request.method} is not allowed here, only {', '.join(error.allowed_methods)}")
    except web.HTTPNotFound:
        problem = RequestError(404, _NOT_SERVED)
    except web.HTTPException as error:
        problem = RequestError(error.status, error.reason)
    except ConnectionError:
        raise
    except Exception as error:
        log_trace()
        log("bug", path=request.path, error=f"{type(error).__name__}: {error}")
        problem = RequestError(500, "the router failed on this request: its log says why")
    body = openai_protocol.error(problem) if request.path.startswith("/v1") else {"error": problem.message}
    headers = {"Retry-After": str(problem.retry_after)} if problem.retry_after else None
    response = web.Response(
        body=json.dumps(body).encode(), status=problem.status, headers=headers, content_type="application/json"
    )
    if request.content.exception() is not None:
        # Where a body does not end as it should, the start of the connection's next request is unknown.
        response.force_close()
    return response


def _json(document: Any) -> web.Response:
    return web.Response(body=json.dumps(document).encode(), content_type="application/json")
