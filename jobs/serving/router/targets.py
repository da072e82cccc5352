"""All targets: changes of their routes are checked, made durable, and then put in force."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterator
from typing import Any

from jobs.serving.log import log
from jobs.serving.router.errors import RequestError
from jobs.serving.router.lease import Lease
from jobs.serving.router.routes import Route, RouteFile
from jobs.serving.router.target import Target


class ConflictError(Exception):
    """A change that conflicts with the present route or lease."""


class Targets:
    """The router's targets by their public names.

    Attributes:
        boot: names this run of the router; counts, samples and leases begin anew with it.
    """

    def __init__(self, file: RouteFile, routes: dict[str, Route]) -> None:
        self.boot = uuid.uuid4().hex
        self._file = file
        self._leases: dict[str, Lease] = {}
        self._targets = {name: Target(name, route, self.lease(name)) for name, route in routes.items()}
        self._changing = asyncio.Lock()

    def __iter__(self) -> Iterator[Target]:
        return iter(self._targets.values())

    def find(self, name: str) -> Target | None:
        return self._targets.get(name)

    def find_public(self, name: str) -> Target:
        """Return the target that a client names. Raises RequestError (404) where it is not served."""
        target = self._targets.get(name)
        if target is None:
            raise RequestError(
                404,
                f"the model {name[:128]!r} does not exist: GET /v1/models lists those that do",
                field="model",
                code="model_not_found",
            )
        return target

    def lease(self, name: str) -> Lease:
        """Return the lease on a target, which can be taken before the target's first route."""
        return self._leases.setdefault(name, Lease())

    def state(self) -> dict[str, Any]:
        return {"boot": self.boot, "targets": {target.name: target.state() for target in self}}

    async def change(self, name: str, change: Route) -> Target:
        """Make a route durable, then put it in force.

        Raises:
            ConflictError: the generation is another, or there is a weight without two arms or without a lease.
            OSError: it cannot be written; the old route stays in force.
        """
        async with self._changing:
            target = self._targets.get(name)
            current = target.route.generation if target else 0
            if change.generation != current:
                raise ConflictError(
                    f"the route of {name} is at generation {current}, the change is based on {change.generation}: "
                    "read /state and decide anew"
                )
            if change.weight > 0:
                self._require_backing(name, change)
            route = change.model_copy(update={"generation": current + 1})
            await asyncio.to_thread(self._file.write, {**self._routes(), name: route})
            if target is None:
                target = self._targets[name] = Target(name, route, self.lease(name))
            else:
                target.follow(route)
        log(
            "route_changed",
            target=name,
            generation=route.generation,
            champion=route.champion,
            canary=route.canary,
            weight=route.weight,
        )
        return target

    async def remove(self, name: str) -> None:
        """Take a target out of service; do nothing where there is none."""
        async with self._changing:
            if name not in self._targets:
                return
            routes = self._routes()
            del routes[name]
            await asyncio.to_thread(self._file.write, routes)
            del self._targets[name]
            self._leases.pop(name, None)
        log("target_removed", target=name)

    def _routes(self) -> dict[str, Route]:
        return {target.name: target.route for target in self}

    def _require_backing(self, name: str, change: Route) -> None:
        if change.canary is None or change.champion is None:
            raise ConflictError(f"a weight of {change.weight} on {name} needs a champion and a canary")
        holder = self.lease(name).holder
        if holder is None or holder != change.holder:
            raise ConflictError(
                f"a weight of {change.weight} on {name} needs a live lease of {change.holder}: "
                f"it is held by {holder or 'nobody'}"
            )
