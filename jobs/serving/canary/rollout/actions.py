"""What a rollout does to the servers: see that they are there, load a release, prove it, hand the traffic over."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

from include.artifacts.store import Store
from include.errors import AnemoneError
from include.release.rollouts import LiveRelease, Release
from jobs.serving.canary.data_plane import Patience
from jobs.serving.canary.rollout.journal import Journal
from jobs.serving.canary.rollout.verdict import UnansweredError, Verdict
from jobs.serving.canary.servers.golden import GoldenPrompt, spread
from jobs.serving.canary.servers.interface import Servers
from jobs.serving.canary.target import Target
from jobs.serving.canary.traffic.interface import RouterError
from jobs.serving.triton.client import NotAvailableError, TritonError

_AT_ONCE = 4


class Deeds:
    """Of one rollout."""

    def __init__(self, journal: Journal, target: Target) -> None:
        self._journal = journal
        self._target = target
        self._peers = target.peers
        self._policy = journal.rollout.request.policy
        self._is_rollback = journal.rollout.request.kind == "rollback"

    async def take_over(self, live: LiveRelease) -> Verdict:
        """Before it is decided that it takes all of the traffic, every server that takes requests answers with it.

        One that refuses, for longer than patience lasts, decides against the release. One that is silent for as long
        is given it when it is back; a rollback does not wait for it. Nor does a rollback fail on one that refuses, or
        wait for longer than patience lasts for one that is slow, if another answers: without the release a server is
        not ready for clients. A canary gets no requests meanwhile, since nobody judges it.
        """
        peers = self._peers
        stable, patience = peers.stable, peers.timing.patience
        if stable is peers.canary:
            return Verdict("promoted")
        if self._target.route.weight:
            await self._end_traffic()
        self._journal.save(self._journal.status.state, f"loading {live.name} on {stable.name}", weight=0.0)
        refusing, silence = Patience(patience), Patience(patience)
        while True:
            silent = await stable.silent()
            refusal = await self._unfit(live) or (None if self._is_rollback else _answered(silent))
            if refusing.is_over(refusal is not None):
                if self._is_rollback and await self._answers(live):
                    self._tell(f"goes on without some of {stable.name}, which are not ready for clients: {refusal}")
                    return Verdict("promoted")
                if not await stable.live():
                    raise UnansweredError(str(refusal))
                return Verdict("rolled_back", (f"{stable.name} cannot take {live.name} over: {refusal}",))
            if refusal is None and (self._is_rollback or not silent or silence.is_over()):
                break
            await asyncio.sleep(peers.timing.retry)
        if silent:
            self._tell(
                f"goes on without {', '.join(silent)} ({next(iter(silent.values()))}): given the release once the "
                "controller is answered; requests that clients get through to there before fail"
            )
        return Verdict("promoted")

    def _tell(self, message: str) -> None:
        self._journal.save(self._journal.status.state, message)

    async def _end_traffic(self) -> None:
        """Of the canary. Raises UnansweredError."""

        async def attempt() -> None:
            await self._target.set_route(self._target.alone())

        try:
            await self._peers.wait_out(RouterError, attempt)
        except RouterError as error:
            raise UnansweredError(str(error)) from None

    async def _answers(self, live: LiveRelease) -> bool:
        """Whether a stable server does with it."""
        problem = self._peers.stable.problem(live.name, self._peers.timing.probe, one_will_do=True)
        return await problem is None

    async def _unfit(self, live: LiveRelease) -> str | None:
        """Why the stable servers that take requests cannot take its traffic now; loads it where it is not."""
        stable, champion = self._peers.stable, self._target.champion_name
        try:
            patience = self._peers.timing.patience
            await stable.bring(live, champion, one_will_do=self._is_rollback, patience=patience)
            if problem := await self._peers.problem(stable, live.name):
                return str(problem)
            lacking = await stable.lacking(live.name, champion)
        except (AnemoneError, OSError) as error:
            return str(error)
        return f"{', '.join(lacking)} do not have it" if lacking else None

    async def require(self, servers: Servers, live: LiveRelease | None) -> None:
        """A release is not to blame where Triton itself has gone, and what was loaded with it."""
        try:
            there = live is None or live.name in await servers.loaded()
        except TritonError:
            there = False
        if not there or not await servers.live():
            raise UnansweredError(f"{servers.name} has gone, or has lost its models")

    async def unready(self, live: LiveRelease) -> str | None:
        if refusal := self._peers.router.refuses(self._target.name):
            return refusal
        engine = live.release.engine
        # A copy that is installed is as good as the artifact, and verified again when it is loaded.
        if not await self._held(live.release):
            try:
                store, name = Store.of(engine.uri)
                manifest = await asyncio.to_thread(store.manifest, name)
            except (AnemoneError, OSError) as error:
                return f"the engine cannot be read: {error}"
            if manifest is None or manifest.content_digest != engine.digest:
                found = "is gone" if manifest is None else f"holds other bytes ({manifest.content_digest[:12]})"
                return f"the engine {engine.uri} ({engine.digest[:12]}) {found}: build it again"
        timing = self._peers.timing
        until = asyncio.get_running_loop().time() + timing.patience
        while problem := await self._amiss():
            if asyncio.get_running_loop().time() > until:
                return f"{problem}, for {timing.patience:.0f} s"
            await asyncio.sleep(timing.retry)
        return None

    async def _held(self, release: Release) -> bool:
        servers = self._peers.stable if self._is_rollback else self._peers.canary
        try:
            return await servers.holds(release, one_will_do=self._is_rollback)
        except TritonError:
            return False

    async def _amiss(self) -> str | None:
        """Why no rollout can begin now: the router, Triton, or the champion does not answer."""
        try:
            await self._target.keep_route()
        except RouterError as error:
            return str(error)
        # A rollback is what a champion, or a canary's tier, that does not answer may need.
        for servers in (self._peers.stable,) if self._is_rollback else self._peers.tiers:
            try:
                await servers.loaded()
            except TritonError as error:
                return str(error)
        champion = self._target.record.champion
        if champion is None or self._is_rollback:
            return None
        problem = await self._peers.problem(self._peers.stable, champion.name)
        return f"the champion {champion.name} does not answer ({problem})" if problem else None

    async def load(self, servers: Servers, release: LiveRelease) -> tuple[LiveRelease, list[GoldenPrompt]]:
        """Install and load, under a name that is known before; for a rollback one server that has it will do.

        Raises:
            AnemoneError, OSError: that fails; for a rollback, for as long as patience lasts.
        """
        name = await servers.called(release)
        async with servers.collecting[name]:
            self._target.needs.add(name)
        live = release.model_copy(update={"name": name, "since": datetime.now(UTC)})
        self._journal.change(release=live)
        self._journal.save("load", f"loading version {live.release.version} as {name}", name=name)

        async def attempt() -> list[GoldenPrompt]:
            patience = self._peers.timing.patience
            await servers.bring(live, instead, one_will_do=self._is_rollback, patience=patience)
            return await servers.golden(live.release)

        champion = self._target.record.champion
        instead = champion.name if champion and servers is self._peers.stable else None
        # A server that has gone meanwhile is replaced by one that has nothing. What is live now is no better for a
        # rollback that fails.
        return live, await self._peers.wait_out(AnemoneError if self._is_rollback else NotAvailableError, attempt)

    async def prove(self, servers: Servers, name: str, golden: list[GoldenPrompt]) -> str | None:
        """Have it answer for real, then give the very texts that its engine gave; returns what is wrong."""
        self._journal.save("ready", f"{name} is loaded: a first real request")
        probe = self._peers.timing.probe
        if await servers.problem(name, probe, one_will_do=self._is_rollback):
            try:
                await servers.reload(name)
            except TritonError as error:
                return f"{name} does not answer, and cannot be loaded again: {error}"
            if problem := await servers.problem(name, probe, one_will_do=self._is_rollback):
                return f"{name} is loaded, but does not answer: {problem}"
        quality = self._policy.quality
        self._journal.save("smoke", f"{name} answers: the golden prompts")
        asked, same, problem = await self.ask_golden(servers, name, golden)
        if same >= quality.min_golden * asked:
            self._journal.save("smoke", f"{same} of {asked} golden prompts gave the engine's own text")
            return None
        return (
            f"{same} of {asked} golden prompts gave the text that the engine gave when it was built, at least "
            f"{quality.min_golden:.0%} have to" + (f" ({problem})" if problem else "")
        )

    async def ask_golden(self, servers: Servers, name: str, golden: list[GoldenPrompt]) -> tuple[int, int, str | None]:
        """How many were asked, how many gave the engine's own text, and the last error."""
        chosen = spread(golden, self._policy.quality.golden_prompts)
        gate = asyncio.Semaphore(_AT_ONCE)
        problems = []

        async def is_same(prompt: GoldenPrompt) -> bool:
            async with gate:
                try:
                    answer = await servers.generate(
                        name, messages=list(prompt.messages), timeout=self._peers.timing.golden
                    )
                except TritonError as error:
                    problems.append(str(error))
                    return False
            return answer.text == prompt.answer

        same = sum(await asyncio.gather(*map(is_same, chosen)))
        return len(chosen), same, problems[-1] if problems else None


def _answered(silent: dict[str, TritonError]) -> str | None:
    """What one answered instead of what it has."""
    return next((str(error) for error in silent.values() if not isinstance(error, NotAvailableError)), None)
