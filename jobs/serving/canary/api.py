"""The controller's HTTP API, for Airflow and for people."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, ProcessCollector, generate_latest
from pydantic import BaseModel, ValidationError

from include.errors import first_problem
from include.release.rollouts import RolloutRequest
from jobs.serving.authorization import is_authorized
from jobs.serving.canary.controller import Controller, RefusedError, UnknownError

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_MAX_BODY = 1024 * 1024
_OPEN = ("/health", "/metrics")


def make_app(controller: Controller, token: str) -> web.Application:
    """Return the API as an application; all but /health and /metrics needs the bearer token."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)

    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.path not in _OPEN and not is_authorized(request, token):
            return _error(401, "the bearer token is missing or wrong: send the one that the controller has")
        try:
            return await handler(request)
        except UnknownError as error:
            return _error(404, str(error))
        except RefusedError as error:
            return _error(409, str(error), **({"rollout": error.rollout} if error.rollout else {}))
        except ValidationError as error:
            return _error(422, first_problem(error, whole="request"))

    routes = web.RouteTableDef()

    @routes.get("/health")
    async def health(_request: web.Request) -> web.Response:
        return web.json_response({"live": True})

    @routes.get("/metrics")
    async def metrics(_request: web.Request) -> web.Response:
        return web.Response(body=generate_latest(registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    @routes.get("/state")
    async def state(_request: web.Request) -> web.Response:
        return _model(controller.state())

    @routes.get("/targets/{target}")
    async def target(request: web.Request) -> web.Response:
        return _model(controller.target(request.match_info["target"]))

    @routes.delete("/targets/{target}")
    async def retire(request: web.Request) -> web.Response:
        name = request.match_info["target"]
        return web.json_response({"target": name, "retired": await controller.retire(name)})

    @routes.post("/rollouts")
    async def submit(request: web.Request) -> web.Response:
        status, new = await controller.submit(RolloutRequest.model_validate_json(await request.read()))
        return _model(status, 201 if new else 200)

    @routes.get("/rollouts/{rollout}")
    async def rollout(request: web.Request) -> web.Response:
        return _model(controller.rollout(request.match_info["rollout"]))

    @routes.post("/rollouts/{rollout}/abort")
    async def abort(request: web.Request) -> web.Response:
        return _model(await controller.abort(request.match_info["rollout"], await _reason(request)))

    @routes.post("/rollouts/{rollout}/resume")
    async def resume(request: web.Request) -> web.Response:
        return _model(controller.resume(request.match_info["rollout"]))

    app = web.Application(middlewares=[guard], client_max_size=_MAX_BODY)
    app.add_routes(routes)
    return app


async def _reason(request: web.Request) -> str:
    try:
        return str(json.loads(await request.read())["reason"])
    except (ValueError, KeyError, TypeError):
        return "no reason given"


def _model(model: BaseModel, status: int = 200) -> web.Response:
    return web.json_response(text=model.model_dump_json(), status=status)


def _error(status: int, message: str, **more: Any) -> web.Response:
    return web.json_response({"error": message, **more}, status=status)
