"""The part of a Kubernetes API that serves an HTTPRoute."""

from __future__ import annotations

import copy
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web

from jobs.serving.canary.traffic.http_route import GROUP

ROUTE = {
    "apiVersion": GROUP,
    "kind": "HTTPRoute",
    "metadata": {"name": "models", "namespace": "anemone", "resourceVersion": "7"},
    "spec": {
        "parentRefs": [{"name": "front"}],
        "rules": [
            {
                "name": "other",
                "backendRefs": [{"name": "router", "port": 8000, "weight": 5}, {"name": "router-canary"}],
            },
            {
                "name": "models",
                "filters": [{"type": "RequestHeaderModifier", "requestHeaderModifier": {"set": []}}],
                "timeouts": {"request": "60s"},
                "backendRefs": [
                    {"name": "router", "port": 8000, "filters": [{"type": "RequestMirror"}]},
                    {"name": "router-canary", "port": 8000, "weight": 0},
                ],
            },
        ],
    },
}


class KubernetesApi:
    """As much of an API server as one HTTPRoute needs, JSON Patch (RFC 6902) and its conflicts included.

    Attributes:
        meddle: called before each patch is looked at.
        objection: what an admission policy has against every patch, if anything.
    """

    def __init__(self) -> None:
        self.route = copy.deepcopy(ROUTE)
        self.patches: list[Any] = []
        self.tokens: set[str] = set()
        self.meddle: Callable[[], None] = lambda: None
        self.objection: str | None = None

    @property
    def weights(self) -> list[Any]:
        return [ref.get("weight") for ref in self.route["spec"]["rules"][1]["backendRefs"]]

    def touch(self) -> None:
        self.route["metadata"]["resourceVersion"] = str(int(self.route["metadata"]["resourceVersion"]) + 1)

    @asynccontextmanager
    async def served(self) -> AsyncIterator[str]:
        async def handle(request: web.Request) -> web.Response:
            self.tokens.add(request.headers["Authorization"])
            if request.path != f"/apis/{GROUP}/namespaces/anemone/httproutes/models":
                return _status(404, f'httproutes "{request.path}" not found')
            if request.method == "GET":
                return web.json_response(self.route)
            self.meddle()
            assert request.content_type == "application/json-patch+json"
            return self._patch(await request.json())

        application = web.Application()
        application.router.add_route("*", "/{path:.*}", handle)
        runner = web.AppRunner(application)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        try:
            yield f"http://127.0.0.1:{runner.addresses[0][1]}"
        finally:
            await runner.cleanup()

    def _patch(self, operations: list[dict[str, Any]]) -> web.Response:
        self.patches.append(operations)
        if self.objection is not None:
            return _status(422, 'HTTPRoute "models" is invalid', self.objection)
        patched = copy.deepcopy(self.route)
        for operation in operations:
            *path, last = operation["path"].strip("/").split("/")
            place: Any = patched
            for key in path:
                place = place[int(key) if isinstance(place, list) else key]
            if operation["op"] == "test":
                if place[last] != operation["value"]:
                    return _status(422, "the server rejected our request due to an error in our request")
            else:
                assert operation["op"] == "add" or last in place
                place[last] = operation["value"]
        if patched["metadata"]["resourceVersion"] != self.route["metadata"]["resourceVersion"]:
            return _status(409, "the object has been modified")
        self.route = patched
        self.touch()
        return web.json_response(self.route)


def _status(code: int, message: str, *causes: str) -> web.Response:
    details = {"causes": [{"message": cause} for cause in causes]}
    return web.json_response({"kind": "Status", "message": message, "details": details, "code": code}, status=code)
