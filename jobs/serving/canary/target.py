"""One target: what it is to serve, and the reconciliation of router and servers with it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from include.errors import AnemoneError
from include.release.rollouts import LiveRelease
from jobs.serving.canary.data_plane import DataPlane
from jobs.serving.canary.servers.interface import Servers
from jobs.serving.canary.state.records import Records, Rollout, TargetRecord
from jobs.serving.canary.traffic.interface import ConflictError, RouterError
from jobs.serving.durably import unbroken
from jobs.serving.log import log
from jobs.serving.router.routes import Split
from jobs.serving.triton.client import NotAvailableError, TimedOutError, TritonError

_TRIES = 5
_FAILED_PROBES = 2
_TIMED_OUT_PROBES = 4
"""Of probes that time out: an overloaded release answers late, and loading it again would make that worse."""

_LONGEST_PAUSE_SECONDS = 60.0


class _LoadingError(NotAvailableError):
    """Servers are still loading a release: no failure, or one that is logged by those who load it."""


class Target:
    """A target's durable record, the route that the router is to have, and its champion's health.

    Attributes:
        record: what is durable.
        route: what the router is to do now; changed by `set_route`.
        holder: of the lease under which a canary gets traffic.
        healthy: whether the champion answered the last real request.
        needs: names of releases that a rollout needs, beside the champion and the warm release.
        canary: the release that a rollout has found ready, which the canary's servers therefore have to have.
        interrupt: called with the reason when Triton has lost its models, before they are loaded again.
    """

    def __init__(self, record: TargetRecord, data_plane: DataPlane, records: Records) -> None:
        self.record = record
        self.data_plane = data_plane
        self.route = self.champion_only()
        self.holder = f"controller@{data_plane.boot}"
        self.healthy = False
        self.needs: set[str] = set()
        self.canary: LiveRelease | None = None
        self.interrupt: Callable[[str], None] | None = None
        self._records = records
        self._routing = asyncio.Lock()
        self._saving = asyncio.Lock()
        self._failed_probes = 0
        self._canary_unreachable = 0
        self._reloads = 0
        self._no_reload_before = 0.0
        self._no_deploy_before: dict[tuple[str, str], float] = {}
        """By tier and release."""
        self._loading: str | None = None
        """The champion that servers are loading again, so that it is logged once."""

    @property
    def name(self) -> str:
        return self.record.target

    @property
    def champion_name(self) -> str | None:
        """Name of the release that clients are to be sent to; None where nothing is live."""
        champion = self.record.champion
        return champion.name if champion and not self.record.retiring else None

    def champion_only(self) -> Split:
        """Return the route that gives all traffic to the champion."""
        return Split(champion=self.champion_name)

    async def save(self, change: Callable[[TargetRecord], TargetRecord]) -> None:
        """Make a change of the record durable, then put it in force. Raises OSError where the disk does not take it."""
        await unbroken(self._save(change))

    async def _save(self, change: Callable[[TargetRecord], TargetRecord]) -> None:
        async with self._saving:
            record = change(self.record)
            if record is not self.record:
                await self._records.save_target(record)
                self.record = record

    async def promote(self, rollout: Rollout) -> LiveRelease | None:
        """Make a promoted rollout's release the champion, and the former champion the first of the previous.

        Idempotent.

        Returns:
            The champion before; the release itself where it was promoted before.
        """
        release = rollout.release
        assert release is not None
        warm = datetime.now(UTC) + timedelta(seconds=rollout.request.policy.warm_seconds)
        former: LiveRelease | None = None

        def change(record: TargetRecord) -> TargetRecord:
            nonlocal former
            former = record.champion
            if former is not None and former.name == release.name:
                return record
            others = tuple(live for live in record.previous if live.name != release.name)
            return record.model_copy(
                update={
                    "champion": release,
                    "previous": (former, *others) if former else others,
                    "warm_until": warm if former else None,
                }
            )

        await self.save(change)
        return former

    def warm(self) -> LiveRelease | None:
        """Return the former champion while it stays loaded for a rollback in an instant."""
        until = self.record.warm_until
        if until is None or not self.record.previous or until <= datetime.now(UTC):
            return None
        return self.record.previous[0]

    def needed(self) -> set[str]:
        """Return the names that have to stay loaded on the stable servers; on the canary's it is those of `needs`."""
        if self.record.retiring:
            return set()
        releases = (self.record.champion, self.warm())
        return self.needs | {release.name for release in releases if release}

    def known(self) -> set[str]:
        """Return the names of every release that the record speaks of, needed or not."""
        releases = (self.record.champion, *self.record.previous)
        return self.needs | {release.name for release in releases if release}

    async def set_route(self, route: Split) -> None:
        """Change the route. Raises RouterError where the router does not take it now; `sync_route` tries again."""
        self.route = route
        await self.apply_route()

    async def apply_route(self) -> None:
        """Send the route to the router, unless the router has it already.

        Raises:
            RouterError: the router does not answer.
            ConflictError: the router refuses, above all because a lease has lapsed.
        """
        async with self._routing:
            refusal: RouterError | None = None
            for _ in range(_TRIES):
                found = (await self.data_plane.router.state())["targets"].get(self.name)
                if self.route.champion is None:
                    if found is not None:
                        await self.data_plane.router.delete(self.name)
                    return
                if found and {key: found.get(key) for key in Split.model_fields} == self.route.model_dump():
                    return
                try:
                    await self.data_plane.router.put(
                        self.name, self.route, found["generation"] if found else 0, self.holder
                    )
                    return
                except ConflictError as error:
                    refusal = error
            assert refusal is not None
            raise refusal

    async def sync_route(self) -> None:
        """Send the route to a router that has another one; log a failure."""
        try:
            await self.apply_route()
        except RouterError as error:
            log("route_pending", target=self.name, error=error)

    async def resync(self) -> None:
        """Reload a champion that does not answer; interrupt a canary whose model is lost."""
        champion = self.record.champion
        if champion is None or self.record.retiring:
            return
        try:
            await self._resync_models(champion)
        except _LoadingError:
            self.healthy = False
        except (TritonError, AnemoneError, OSError) as error:
            self.healthy = False
            log("repair_failed", target=self.name, release=champion.name, error=error)

    async def deploy_missing(self) -> None:
        """Deploy releases to servers that are not ready with them: a new server is empty, and takes no requests.

        A champion that no server has is loaded again by `resync`.
        """
        data_plane, champion = self.data_plane, self.record.champion
        if champion is None or self.record.retiring:
            return
        if self.canary is not None and data_plane.canary is not data_plane.stable:
            await self._deploy_missing_to(data_plane.canary, self.canary)
        try:
            if champion.name not in await data_plane.stable.loaded():
                return
        except TritonError:
            return
        await self._deploy_missing_to(data_plane.stable, champion)
        if (warm := self.warm()) is not None:
            await self._deploy_missing_to(data_plane.stable, warm, beside=champion.name)

    async def _deploy_missing_to(self, servers: Servers, live: LiveRelease, beside: str | None = None) -> None:
        key, now = (servers.name, live.name), asyncio.get_running_loop().time()
        if now < self._no_deploy_before.get(key, 0.0):
            return
        try:
            if not await servers.not_ready(live.name):
                return
        except TritonError:
            return
        try:
            await self._start_deploy(servers, live, beside)
        except (AnemoneError, OSError) as error:
            # Without the warm release a rollback is slower, and nothing else.
            self._no_deploy_before[key] = now + _LONGEST_PAUSE_SECONDS
            log("repair_failed", target=self.name, release=live.name, error=error)

    async def _resync_models(self, champion: LiveRelease) -> None:
        stable, canary = self.data_plane.stable, self.data_plane.canary
        loaded = await stable.loaded()
        lost = {champion.name} - loaded
        if self.canary is None:
            self._canary_unreachable = 0
        else:
            try:
                lost |= {self.canary.name} - (loaded if canary is stable else await canary.loaded())
                self._canary_unreachable = 0
            except TritonError as error:
                self._canary_unreachable += 1
                if self._canary_unreachable >= _FAILED_PROBES:
                    self._canary_unreachable = 0
                    await self._interrupt(str(error))
        if lost:
            names = ", ".join(sorted(lost))
            await self._interrupt(f"Triton has lost {names}: it was restarted, or someone unloaded it")
        if champion.name not in loaded:
            self.healthy = False
            if self._loading != champion.name:
                log("repair", target=self.name, release=champion.name, reason="not loaded")
            self._loading = champion.name
            champion = await self.ensure_loaded(champion)
        self._loading = None
        await self._probe(champion)

    async def _interrupt(self, reason: str) -> None:
        """Take a canary's traffic away while models are being loaded again, when it would only seem to fail."""
        if self.interrupt is None:
            return
        self.interrupt(reason)
        try:
            await self.set_route(self.champion_only())
        except RouterError as error:
            log("route_pending", target=self.name, error=error)

    async def ensure_loaded(self, live: LiveRelease) -> LiveRelease:
        """Load a live release where no stable server has it; the other servers load it meanwhile.

        Returns:
            The release under the name that it has now.

        Raises:
            ArtifactError: its installed engine was altered, or it is not installed any more and its engine is gone
                from the store.
            TritonError: it does not load, or it is not loaded yet.
        """
        stable = self.data_plane.stable
        if live.name in await stable.loaded():
            return live
        live = await self._start_deploy(stable, live)
        if live.name not in await stable.loaded():
            raise _LoadingError(f"{live.name} is not loaded on {stable.name} yet")
        return live

    async def _start_deploy(self, servers: Servers, live: LiveRelease, beside: str | None = None) -> LiveRelease:
        name = await servers.release_name(live)
        if name != live.name:
            live = await self._rename(live, name)
        await servers.start_deploy(live, beside)
        return live

    async def _rename(self, live: LiveRelease, name: str) -> LiveRelease:
        """Record a release's new name: Anemone's code is part of it, so that an update changes it."""
        renamed = live.model_copy(update={"name": name})

        def current(release: LiveRelease | None) -> LiveRelease | None:
            return renamed if release is not None and release.name == live.name else release

        def change(record: TargetRecord) -> TargetRecord:
            previous = tuple(release for release in map(current, record.previous) if release)
            return record.model_copy(update={"champion": current(record.champion), "previous": previous})

        await self.save(change)
        if self.route.champion == live.name:
            self.route = self.route.model_copy(update={"champion": name})
        log("renamed", target=self.name, former=live.name, name=name)
        return renamed

    async def _probe(self, champion: LiveRelease) -> None:
        """Send the champion a real request, and reload it after some failures.

        Triton calls a release ready even when its process has died.
        """
        problem = await self.data_plane.probe(self.data_plane.stable, champion.name)
        self.healthy = problem is None
        if self.healthy:
            self._failed_probes = self._reloads = 0
            return
        self._failed_probes += 1
        now = asyncio.get_running_loop().time()
        enough = _TIMED_OUT_PROBES if isinstance(problem, TimedOutError) else _FAILED_PROBES
        if self._failed_probes < enough or now < self._no_reload_before:
            return
        log("repair", target=self.name, release=champion.name, reason=problem)
        self._reloads += 1
        self._no_reload_before = now + min(_LONGEST_PAUSE_SECONDS, self.data_plane.timing.resync * 2**self._reloads)
        await self.data_plane.stable.reload(champion.name)
        self._failed_probes = 0
