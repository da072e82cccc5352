"""The API for the canary controller: routes, leases, counts, samples; and, without a token, metrics for Prometheus."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, TypeVar

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from pydantic import Field, TypeAdapter, ValidationError

from include.errors import first_problem
from include.model import Model
from include.specs.champion import ModelName
from jobs.serving.authorization import is_authorized
from jobs.serving.log import log_trace
from jobs.serving.router.lease import HeldError
from jobs.serving.router.routes import Holder, Route
from jobs.serving.router.target import Target
from jobs.serving.router.targets import ConflictError, Targets

M = TypeVar("M", bound=Model)
_NAME = TypeAdapter(ModelName)
MAX_LEASE_SECONDS = 3600.0


class _Lease(Model):
    holder: Holder
    seconds: Annotated[float, Field(gt=0, le=MAX_LEASE_SECONDS)]


class _Release(Model):
    holder: Holder


class AdminApi:
    """The handlers of the admin API."""

    def __init__(self, targets: Targets, registry: CollectorRegistry, token: str) -> None:
        self._targets = targets
        self._registry = registry
        self._token = token

    def application(self) -> web.Application:
        application = web.Application(middlewares=[self._guard])
        application.add_routes(
            [
                web.get("/metrics", self._metrics),
                web.get("/state", self._state),
                web.put("/targets/{target}", self._change),
                web.delete("/targets/{target}", self._remove),
                web.post("/targets/{target}/lease", self._take_lease),
                web.delete("/targets/{target}/lease", self._release_lease),
                web.get("/targets/{target}/counts", self._counts),
                web.get("/targets/{target}/samples", self._samples),
            ]
        )
        return application

    async def _state(self, request: web.Request) -> web.Response:
        return _json(self._targets.state())

    async def _change(self, request: web.Request) -> web.Response:
        name = _target_name(request)
        target = await self._targets.change(name, await _read(request, Route))
        return _json(target.state())

    async def _remove(self, request: web.Request) -> web.Response:
        await self._targets.remove(_target_name(request))
        return _json({})

    async def _take_lease(self, request: web.Request) -> web.Response:
        asked = await _read(request, _Lease)
        lease = self._targets.lease(_target_name(request))
        lease.take(asked.holder, asked.seconds)
        return _json({"holder": asked.holder, "expires_in": lease.expires_in})

    async def _release_lease(self, request: web.Request) -> web.Response:
        asked = await _read(request, _Release)
        self._targets.lease(_target_name(request)).release(asked.holder)
        return _json({"holder": None, "expires_in": 0.0})

    async def _counts(self, request: web.Request) -> web.Response:
        return _json({"boot": self._targets.boot, "generations": self._target(request).counts()})

    async def _samples(self, request: web.Request) -> web.Response:
        after = request.query.get("after", "0")
        if not (after.isascii() and after.isdigit()):
            raise web.HTTPBadRequest(reason="after must be the seq of a sample, or 0")
        samples, lost = self._target(request).samples.after(int(after[:18]))
        body = await asyncio.to_thread(_samples_json, self._targets.boot, samples, lost)
        return web.Response(body=body, content_type="application/json")

    async def _metrics(self, request: web.Request) -> web.Response:
        return web.Response(body=generate_latest(self._registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    def _target(self, request: web.Request) -> Target:
        target = self._targets.find(request.match_info["target"])
        if target is None:
            raise web.HTTPNotFound(reason="there is no such target")
        return target

    @web.middleware
    async def _guard(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        if request.path != "/metrics" and not is_authorized(request, self._token):
            return _error(401, "send the header Authorization: Bearer with the token that the router was started with")
        try:
            return await handler(request)
        except (ConflictError, HeldError) as error:
            return _error(409, str(error))
        except OSError as error:
            return _error(500, f"the route could not be written ({error}): the old one stays in force")
        except web.HTTPException as error:
            return _error(error.status, error.reason)
        except Exception as error:
            log_trace()
            return _error(500, f"{type(error).__name__}: {error}")


async def _read(request: web.Request, model: type[M]) -> M:
    try:
        return model.model_validate_json(await request.read())
    except ValidationError as error:
        raise web.HTTPBadRequest(reason=first_problem(error, "body").replace("\n", " ")) from None


def _target_name(request: web.Request) -> str:
    try:
        return _NAME.validate_python(request.match_info["target"])
    except ValidationError:
        raise web.HTTPBadRequest(reason="the target is not a model name") from None


def _samples_json(boot: str, samples: list[dict[str, Any]], lost: int) -> bytes:
    # One by one: other threads do not run during one call of the encoder.
    rows = ", ".join(map(json.dumps, samples))
    return f'{{"boot": {json.dumps(boot)}, "samples": [{rows}], "lost": {lost}}}'.encode()


def _json(document: Any, status: int = 200) -> web.Response:
    return web.Response(body=json.dumps(document).encode(), status=status, content_type="application/json")


def _error(status: int, message: str) -> web.Response:
    return _json({"error": message}, status)
