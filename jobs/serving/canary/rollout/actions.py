"""A rollout's actions on the servers: the precheck, loading a release, its smoke test, the take-over."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

from include.artifacts.store import Store
from include.errors import AnemoneError
from include.release.rollouts import LiveRelease, Release
from jobs.serving.canary.data_plane import Deadline
from jobs.serving.canary.rollout.journal import Journal
from jobs.serving.canary.rollout.outcome import UnreachableError, Verdict
from jobs.serving.canary.servers.golden import GoldenPrompt, spread
from jobs.serving.canary.servers.interface import Servers
from jobs.serving.canary.target import Target
from jobs.serving.canary.traffic.interface import RouterError
from jobs.serving.triton.client import NotAvailableError, TritonError

_CONCURRENT_PROMPTS = 4


class Actions:
    """The actions of one rollout on the data plane."""

    def __init__(self, journal: Journal, target: Target) -> None:
        self._journal = journal
        self._target = target
        self._data_plane = target.data_plane
        self._policy = journal.rollout.request.policy
        self._is_rollback = journal.rollout.request.kind == "rollback"

    async def take_over(self, live: LiveRelease) -> Verdict:
        """Load a release on every stable server that takes requests, before it gets all of the traffic.

        A server that refuses it for longer than `Timing.outage` decides against the release. One that is unreachable
        for as long gets it once it is back; a rollback does not wait for it. Where another server answers, a rollback
        neither fails on a server that refuses, nor waits for a slow one for longer than the timeout: a server without
        the release is not ready for clients. The canary gets no requests meanwhile, since nothing judges it.

        Raises:
            UnreachableError: the router, or every server of the tier, was unreachable for as long.
        """
        data_plane = self._data_plane
        stable, outage = data_plane.stable, data_plane.timing.outage
        if stable is data_plane.canary:
            return Verdict("promoted")
        if self._target.route.weight:
            await self._end_traffic()
        await self._journal.save(self._journal.status.state, f"loading {live.name} on {stable.name}", weight=0.0)
        refusal_deadline, outage_deadline = Deadline(outage), Deadline(outage)
        while True:
            unreachable = await stable.unreachable()
            refusal = await self._refusal(live)
            if refusal is None and not self._is_rollback:
                refusal = _error_answered(unreachable)
            if refusal_deadline.exceeded(refusal is not None):
                if self._is_rollback and await self._answers_anywhere(live):
                    await self._note(
                        f"goes on without some of {stable.name}, which are not ready for clients: {refusal}"
                    )
                    return Verdict("promoted")
                if not await stable.live():
                    raise UnreachableError(str(refusal))
                return Verdict("rolled_back", (f"{stable.name} cannot take {live.name} over: {refusal}",))
            if refusal is None and (self._is_rollback or not unreachable or outage_deadline.exceeded()):
                break
            await asyncio.sleep(data_plane.timing.retry)
        if unreachable:
            await self._note(
                f"goes on without {', '.join(unreachable)} ({next(iter(unreachable.values()))}): the release is "
                "loaded there once it answers the controller; requests that clients get through to there before fail"
            )
        return Verdict("promoted")

    async def _note(self, message: str) -> None:
        await self._journal.save(self._journal.status.state, message)

    async def _end_traffic(self) -> None:
        """Take the canary's traffic away. Raises UnreachableError."""

        async def attempt() -> None:
            await self._target.set_route(self._target.champion_only())

        try:
            await self._data_plane.retry_while(RouterError, attempt)
        except RouterError as error:
            raise UnreachableError(str(error)) from None

    async def _answers_anywhere(self, live: LiveRelease) -> bool:
        """Return whether any stable server answers with a release."""
        probe = self._data_plane.timing.probe
        return await self._data_plane.stable.probe(live.name, probe, any_server=True) is None

    async def _refusal(self, live: LiveRelease) -> str | None:
        """Load a release on the stable servers that take requests; return why one cannot take its traffic now."""
        stable, champion = self._data_plane.stable, self._target.champion_name
        try:
            await self._deploy(stable, live, champion)
            if error := await self._data_plane.probe(stable, live.name):
                return str(error)
            not_ready = await stable.not_ready(live.name, champion)
        except (AnemoneError, OSError) as error:
            return str(error)
        return f"{', '.join(not_ready)} do not have it" if not_ready else None

    async def require_loaded(self, servers: Servers, live: LiveRelease | None) -> None:
        """Check that a tier is reachable and has a release loaded, before a failure is put down to the candidate.

        Raises:
            UnreachableError: Triton has gone, or has lost what was loaded.
        """
        try:
            loaded = live is None or live.name in await servers.loaded()
        except TritonError:
            loaded = False
        if not loaded or not await servers.live():
            raise UnreachableError(f"{servers.name} has gone, or has lost its models")

    async def precheck(self, live: LiveRelease) -> str | None:
        """Wait until a rollout can begin; return why it cannot, None where it can."""
        if refusal := self._data_plane.router.refuses(self._target.name):
            return refusal
        engine = live.release.engine
        # An installed copy is as good as the artifact, and verified again when it is loaded.
        if not await self._has_engine(live.release):
            try:
                store, name = Store.of(engine.uri)
                manifest = await asyncio.to_thread(store.manifest, name)
            except (AnemoneError, OSError) as error:
                return f"the engine cannot be read: {error}"
            if manifest is None or manifest.content_digest != engine.digest:
                found = "is gone" if manifest is None else f"holds other bytes ({manifest.content_digest[:12]})"
                return (
                    f"the engine {engine.uri} ({engine.digest[:12]}) {found}: run release of this version, which "
                    "builds it again"
                )
        timing = self._data_plane.timing
        until = asyncio.get_running_loop().time() + timing.outage
        while problem := await self._unavailable():
            if asyncio.get_running_loop().time() > until:
                return f"{problem}, for {timing.outage:.0f} s"
            await asyncio.sleep(timing.retry)
        return None

    async def _has_engine(self, release: Release) -> bool:
        servers = self._data_plane.stable if self._is_rollback else self._data_plane.canary
        try:
            return await servers.has_engine(release, any_server=self._is_rollback)
        except TritonError:
            return False

    async def _unavailable(self) -> str | None:
        """Return why no rollout can begin now: the router, Triton, or the champion does not answer."""
        try:
            await self._target.apply_route()
        except RouterError as error:
            return str(error)
        # A champion or a canary tier that does not answer may be the very reason for a rollback.
        for servers in (self._data_plane.stable,) if self._is_rollback else self._data_plane.tiers:
            try:
                await servers.loaded()
            except TritonError as error:
                return str(error)
        champion = self._target.record.champion
        if champion is None or self._is_rollback:
            return None
        problem = await self._data_plane.probe(self._data_plane.stable, champion.name)
        return f"the champion {champion.name} does not answer ({problem})" if problem else None

    async def load(self, servers: Servers, release: LiveRelease) -> tuple[LiveRelease, list[GoldenPrompt]]:
        """Install and load a release; for a rollback it is enough that one server has it.

        Returns:
            The release under its name in Triton, and its golden prompts.

        Raises:
            AnemoneError, OSError: that fails; for a rollback, for longer than `Timing.outage`.
        """
        name = await servers.release_name(release)
        async with servers.collecting[name]:
            self._target.needs.add(name)
        live = release.model_copy(update={"name": name, "since": datetime.now(UTC)})
        self._journal.change(release=live)
        await self._journal.save("load", f"loading version {live.release.version} as {name}", name=name)

        async def attempt() -> list[GoldenPrompt]:
            await self._deploy(servers, live, serving)
            return await servers.golden(live.release)

        champion = self._target.record.champion
        serving = champion.name if champion and servers is self._data_plane.stable else None
        # A server that is lost meanwhile is replaced by an empty one. A rollback tries again after any error: what is
        # live is no better for a rollback that fails.
        passing = AnemoneError if self._is_rollback else NotAvailableError
        return live, await self._data_plane.retry_while(passing, attempt)

    async def _deploy(self, servers: Servers, live: LiveRelease, serving: str | None) -> None:
        outage = self._data_plane.timing.outage
        await servers.deploy(live, serving, any_server=self._is_rollback, outage=outage)

    async def smoke_test(self, servers: Servers, name: str, golden: list[GoldenPrompt]) -> str | None:
        """Ask a release for a real answer, then its golden prompts; return what is wrong, None where nothing is."""
        await self._journal.save("ready", f"{name} is loaded: a first real request")
        probe = self._data_plane.timing.probe
        if await servers.probe(name, probe, any_server=self._is_rollback) is not None:
            try:
                await servers.reload(name)
            except TritonError as error:
                return f"{name} does not answer, and cannot be loaded again: {error}"
            if problem := await servers.probe(name, probe, any_server=self._is_rollback):
                return f"{name} is loaded, but does not answer: {problem}"
        quality = self._policy.quality
        await self._journal.save("smoke", f"{name} answers: the golden prompts")
        asked, same, last_error = await self.ask_golden(servers, name, golden)
        if same >= quality.min_golden * asked:
            await self._journal.save("smoke", f"{same} of {asked} golden prompts gave the engine's own text")
            return None
        return (
            f"{same} of {asked} golden prompts gave the text that the engine gave when it was built, at least "
            f"{quality.min_golden:.0%} have to" + (f" ({last_error})" if last_error else "")
        )

    async def ask_golden(self, servers: Servers, name: str, golden: list[GoldenPrompt]) -> tuple[int, int, str | None]:
        """Return how many golden prompts were asked, how many gave the engine's own text, and the last error."""
        chosen = spread(golden, self._policy.quality.golden_prompts)
        gate = asyncio.Semaphore(_CONCURRENT_PROMPTS)
        problems = []

        async def is_same(prompt: GoldenPrompt) -> bool:
            async with gate:
                try:
                    answer = await servers.generate(
                        name, messages=list(prompt.messages), timeout=self._data_plane.timing.golden
                    )
                except TritonError as error:
                    problems.append(str(error))
                    return False
            return answer.text == prompt.answer

        same = sum(await asyncio.gather(*map(is_same, chosen)))
        return len(chosen), same, problems[-1] if problems else None


def _error_answered(unreachable: dict[str, TritonError]) -> str | None:
    """Return what a server answered that could not say which releases it has."""
    return next((str(error) for error in unreachable.values() if not isinstance(error, NotAvailableError)), None)
