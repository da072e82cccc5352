"""One target: what it is to serve, and the steady effort to keep it so, whatever dies around it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from include.errors import AnemoneError
from include.release.rollouts import LiveRelease
from jobs.serving.canary.data_plane import Peers
from jobs.serving.canary.servers.interface import Servers
from jobs.serving.canary.state.records import Records, Rollout, TargetRecord
from jobs.serving.canary.traffic.interface import ConflictError, RouterError
from jobs.serving.router.log import log
from jobs.serving.router.routes import Split
from jobs.serving.triton.client import NotAvailableError, TimedOutError, TritonError

_TRIES = 5
_MISSES = 2
_LATE_MISSES = 4
"""An overloaded release answers late; loading it again would make that worse, so it has to be late for longer."""

_LONGEST_PAUSE_SECONDS = 60.0


class _NotYetError(NotAvailableError):
    """Servers are being given a release: no failure, or it is told by those who give it."""


class Target:
    """A target's durable record, the route that the router is to have, and its champion's health.

    Attributes:
        record: what is durable.
        route: what the router is to do now; who changes it calls `set_route`.
        holder: in whose name a canary gets traffic.
        healthy: whether the champion answered the last real request.
        needs: names that a rollout wants kept, beside the champion and the warm release.
        canary: the release that a rollout has found ready, and that the canary's servers therefore have to have.
        interrupt: called with the reason when Triton has lost its models, before they are loaded again.
    """

    def __init__(self, record: TargetRecord, peers: Peers, records: Records) -> None:
        self.record = record
        self.peers = peers
        self.route = self.alone()
        self.holder = f"controller@{peers.boot}"
        self.healthy = False
        self.needs: set[str] = set()
        self.canary: LiveRelease | None = None
        self.interrupt: Callable[[str], None] | None = None
        self._records = records
        self._routing = asyncio.Lock()
        self._misses = 0
        self._canary_silent = 0
        self._repairs = 0
        self._repair_not_before = 0.0
        self._supply_not_before: dict[tuple[str, str], float] = {}
        """By tier and release."""
        self._bringing: str | None = None
        """The champion that servers are being given, so that it is told once."""

    @property
    def name(self) -> str:
        return self.record.target

    @property
    def champion_name(self) -> str | None:
        """What clients are to be sent to; None where nothing is live."""
        champion = self.record.champion
        return champion.name if champion and not self.record.retiring else None

    def alone(self) -> Split:
        """All traffic to the champion."""
        return Split(champion=self.champion_name)

    def save(self, record: TargetRecord) -> None:
        """Change what is durable."""
        self._records.save_target(record)
        self.record = record

    def promote(self, rollout: Rollout) -> None:
        """Follow a promoted rollout: its release is the champion, the former one the first of the previous.

        Doing it again changes nothing.
        """
        release, former = rollout.release, self.record.champion
        assert release is not None
        if former is not None and former.name == release.name:
            return
        others = tuple(live for live in self.record.previous if live.name != release.name)
        warm = datetime.now(UTC) + timedelta(seconds=rollout.request.policy.warm_seconds)
        self.save(
            self.record.model_copy(
                update={
                    "champion": release,
                    "previous": (former, *others) if former else others,
                    "warm_until": warm if former else None,
                }
            )
        )

    def warm(self) -> LiveRelease | None:
        """The release that stays loaded for a rollback in an instant."""
        until = self.record.warm_until
        if until is None or not self.record.previous or until <= datetime.now(UTC):
            return None
        return self.record.previous[0]

    def needed(self) -> set[str]:
        """Names that have to stay loaded and installed on the stable servers; on the canary's, those of `needs`."""
        if self.record.retiring:
            return set()
        releases = (self.record.champion, self.warm())
        return self.needs | {release.name for release in releases if release}

    def known(self) -> set[str]:
        """Names of every release that a record speaks of, needed or not."""
        releases = (self.record.champion, *self.record.previous)
        return self.needs | {release.name for release in releases if release}

    async def set_route(self, route: Split) -> None:
        """Have the router do this from now on. Raises RouterError where it cannot be told now; `tend` will."""
        self.route = route
        await self.keep_route()

    async def keep_route(self) -> None:
        """Tell the router, unless it does already what it is to do.

        Raises:
            RouterError: it does not answer, or it refuses (ConflictError: above all a lease that has lapsed).
        """
        async with self._routing:
            refusal: RouterError | None = None
            for _ in range(_TRIES):
                found = (await self.peers.router.state())["targets"].get(self.name)
                if self.route.champion is None:
                    if found is not None:
                        await self.peers.router.delete(self.name)
                    return
                if found and {key: found.get(key) for key in Split.model_fields} == self.route.model_dump():
                    return
                try:
                    await self.peers.router.put(self.name, self.route, found["generation"] if found else 0, self.holder)
                    return
                except ConflictError as error:
                    refusal = error
            assert refusal is not None
            raise refusal

    async def follow(self) -> None:
        """Put right what the router does."""
        try:
            await self.keep_route()
        except RouterError as error:
            log("route_pending", target=self.name, error=error)

    async def tend(self) -> None:
        """Put right what is not as it should be: a canary without its model, a champion that is silent."""
        champion = self.record.champion
        if champion is None or self.record.retiring:
            return
        try:
            await self._tend_models(champion)
        except _NotYetError:
            self.healthy = False
        except (TritonError, AnemoneError, OSError) as error:
            self.healthy = False
            log("repair_failed", target=self.name, release=champion.name, error=error)

    async def supply(self) -> None:
        """Give servers what they lack: one that has just been made has nothing, and takes no requests before.

        A champion that no server has is brought back by `tend`.
        """
        peers, champion = self.peers, self.record.champion
        if champion is None or self.record.retiring:
            return
        if self.canary is not None and peers.canary is not peers.stable:
            await self._supply(peers.canary, self.canary)
        try:
            if champion.name not in await peers.stable.loaded():
                return
        except TritonError:
            return
        await self._supply(peers.stable, champion)
        if (warm := self.warm()) is not None:
            await self._supply(peers.stable, warm, beside=champion.name)

    async def _supply(self, servers: Servers, live: LiveRelease, beside: str | None = None) -> None:
        key, now = (servers.name, live.name), asyncio.get_running_loop().time()
        if now < self._supply_not_before.get(key, 0.0):
            return
        try:
            if not await servers.lacking(live.name):
                return
        except TritonError:
            return
        try:
            await self._put(servers, live, beside)
        except (AnemoneError, OSError) as error:
            # A rollback is slower without the warm one, and nothing else.
            self._supply_not_before[key] = now + _LONGEST_PAUSE_SECONDS
            log("repair_failed", target=self.name, release=live.name, error=error)

    async def _tend_models(self, champion: LiveRelease) -> None:
        stable, canary = self.peers.stable, self.peers.canary
        loaded = await stable.loaded()
        lost = {champion.name} - loaded
        if self.canary is None:
            self._canary_silent = 0
        else:
            try:
                lost |= {self.canary.name} - (loaded if canary is stable else await canary.loaded())
                self._canary_silent = 0
            except TritonError as error:
                self._canary_silent += 1
                if self._canary_silent >= _MISSES:
                    self._canary_silent = 0
                    await self._interrupt(str(error))
        if lost:
            names = ", ".join(sorted(lost))
            await self._interrupt(f"Triton has lost {names}: it was restarted, or someone unloaded it")
        if champion.name not in loaded:
            self.healthy = False
            if self._bringing != champion.name:
                log("repair", target=self.name, release=champion.name, reason="not loaded")
            self._bringing = champion.name
            champion = await self.ensure_loaded(champion)
        self._bringing = None
        await self._probe(champion)

    async def _interrupt(self, reason: str) -> None:
        """A canary gets no traffic while models are being loaded again: it would only seem to fail."""
        if self.interrupt is None:
            return
        self.interrupt(reason)
        try:
            await self.set_route(self.alone())
        except RouterError as error:
            log("route_pending", target=self.name, error=error)

    async def ensure_loaded(self, live: LiveRelease) -> LiveRelease:
        """See that a release that is live stands on some stable server; the others are given it meanwhile.

        Returns it under the name that it has now.

        Raises:
            ArtifactError: its installed engine was altered, or it is not installed any more and its engine is gone
                from the store.
            TritonError: it does not load, or not yet.
        """
        stable = self.peers.stable
        if live.name in await stable.loaded():
            return live
        live = await self._put(stable, live)
        if live.name not in await stable.loaded():
            raise _NotYetError(f"{live.name} is not loaded on {stable.name} yet")
        return live

    async def _put(self, servers: Servers, live: LiveRelease, beside: str | None = None) -> LiveRelease:
        name = await servers.called(live)
        if name != live.name:
            live = self._rename(live, name)
        await servers.supply(live, beside)
        return live

    def _rename(self, live: LiveRelease, name: str) -> LiveRelease:
        """Anemone's own code is part of a name: after an update the same release is installed under another."""
        renamed = live.model_copy(update={"name": name})

        def current(release: LiveRelease | None) -> LiveRelease | None:
            return renamed if release is not None and release.name == live.name else release

        champion = current(self.record.champion)
        previous = tuple(release for release in map(current, self.record.previous) if release)
        self.save(self.record.model_copy(update={"champion": champion, "previous": previous}))
        if self.route.champion == live.name:
            self.route = self.route.model_copy(update={"champion": name})
        log("renamed", target=self.name, former=live.name, name=name)
        return renamed

    async def _probe(self, champion: LiveRelease) -> None:
        """Readiness as Triton tells it means little: a release whose process died still counts as ready."""
        problem = await self.peers.problem(self.peers.stable, champion.name)
        self.healthy = problem is None
        if self.healthy:
            self._misses = self._repairs = 0
            return
        self._misses += 1
        now = asyncio.get_running_loop().time()
        enough = _LATE_MISSES if isinstance(problem, TimedOutError) else _MISSES
        if self._misses < enough or now < self._repair_not_before:
            return
        log("repair", target=self.name, release=champion.name, reason=problem)
        self._repairs += 1
        self._repair_not_before = now + min(_LONGEST_PAUSE_SECONDS, self.peers.timing.tend * 2**self._repairs)
        await self.peers.stable.reload(champion.name)
        self._misses = 0
