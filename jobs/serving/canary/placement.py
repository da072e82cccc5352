"""The releases that each tier has to have: unload the others, and set what makes a server ready for clients."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from include.errors import AnemoneError
from jobs.serving.canary.data_plane import DataPlane
from jobs.serving.canary.servers.interface import Servers
from jobs.serving.canary.target import Target
from jobs.serving.canary.traffic.interface import RouterError
from jobs.serving.log import log


class Placement:
    """The releases that all targets together need on each tier.

    Args:
        targets: by name; the controller adds and removes them.
    """

    def __init__(self, data_plane: DataPlane, targets: Mapping[str, Target]) -> None:
        self._data_plane = data_plane
        self._targets = targets
        self._logged_problems: dict[tuple[str, str], str] = {}
        """By event and tier: why it failed the last time."""

    async def collect(self) -> None:
        """Unload and remove the releases that no target needs any more."""
        await asyncio.gather(*map(self._collect_from, self._data_plane.tiers))

    async def _collect_from(self, servers: Servers) -> None:
        """Unload and remove releases of one tier; one that fails does not hold up the others."""
        problems: list[str] = []
        try:
            idle = (await servers.loaded() | await servers.installed()) - self._needed(servers)
            idle -= await self._routed(servers) if idle else set()
        except (RouterError, AnemoneError, OSError) as error:
            problems.append(str(error))
        else:
            await asyncio.gather(*(self._remove_release(servers, name, problems) for name in sorted(idle)))
        self._log_change("collect_pending", servers, "; ".join(problems))

    async def _remove_release(self, servers: Servers, name: str, problems: list[str]) -> None:
        async with servers.collecting[name]:
            if name in self._needed(servers):
                return
            with _collect_error(problems):
                if name in await servers.loaded():
                    log("unload", tier=servers.name, release=name)
                    await servers.unload(name)
                if name in await servers.installed():
                    await servers.remove(name)

    def _log_change(self, event: str, servers: Servers, problem: str) -> None:
        if problem and problem != self._logged_problems.get((event, servers.name)):
            log(event, tier=servers.name, error=problem)
        self._logged_problems[event, servers.name] = problem

    def _needed(self, servers: Servers) -> set[str]:
        stable = servers is self._data_plane.stable
        return {name for target in self._targets.values() for name in (target.needed() if stable else target.needs)}

    async def _routed(self, servers: Servers) -> set[str]:
        """Return the releases of a tier that the router sends clients to, whatever the records say: they stay."""
        data_plane = self._data_plane
        routed = await data_plane.router.routed()
        arms = [
            arm for arm, tier in (("champion", data_plane.stable), ("canary", data_plane.canary)) if tier is servers
        ]
        return set().union(*(routed[arm] for arm in arms))

    async def set_readiness(self) -> None:
        """Set for each tier the releases that a server has to have before clients are sent there."""
        champions = {name for target in self._targets.values() if (name := target.champion_name)}
        canaries = {target.canary.name for target in self._targets.values() if target.canary}
        known = champions | canaries | {name for target in self._targets.values() for name in target.known()}
        both = self._data_plane.stable is self._data_plane.canary
        asked = [(self._data_plane.stable, champions | canaries if both else champions)]
        if not both:
            asked.append((self._data_plane.canary, canaries))
        await asyncio.gather(*(self._set_readiness_of(servers, names, known) for servers, names in asked))

    async def _set_readiness_of(self, servers: Servers, names: set[str], known: set[str]) -> None:
        """Set the releases of one tier, including those that the router has routes to although no record names them."""
        try:
            try:
                names = names | (await self._routed(servers) - known)
            except RouterError:
                if not names:
                    raise
            if len(names) > 1:
                # A release that no server has would make every server unready for the clients of the others, too.
                names = names & await servers.loaded() or names
            await servers.set_readiness(names)
        except (RouterError, AnemoneError, OSError) as error:
            self._log_change("readiness_pending", servers, str(error))
        else:
            self._log_change("readiness_pending", servers, "")


@contextmanager
def _collect_error(problems: list[str]) -> Iterator[None]:
    try:
        yield
    except (AnemoneError, OSError) as error:
        problems.append(str(error))
