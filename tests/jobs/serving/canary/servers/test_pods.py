"""A tier of pods that come, go and fail, each with a real agent's API before a Triton that does what a test says."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from include.artifacts.store import Store
from include.errors import ArtifactError
from include.release.rollouts import LiveRelease, Release
from include.specs.base import Artifact
from jobs.serving.canary.servers.pods import Pods
from jobs.serving.triton.agent import AgentApi
from jobs.serving.triton.agent_client import AgentResolver
from jobs.serving.triton.client import Answer, NotAvailableError, TritonError
from tests.jobs.serving.triton.engine_fixture import commit_engine

TOKEN = "planted-token"


class Triton:
    """A Triton that loads and answers as a test says."""

    def __init__(self) -> None:
        self.up = True
        self.ready: set[str] = set()
        self.refuses: set[str] = set()
        self.dead: set[str] = set()
        self.reloads: list[str] = []
        self.loads = 0
        self.asked = 0

    def _require_up(self) -> None:
        if not self.up:
            raise NotAvailableError("Triton does not answer")

    async def live(self) -> bool:
        return self.up

    async def states(self) -> dict[str, str]:
        self._require_up()
        return dict.fromkeys(self.ready, "READY")

    async def load(self, name: str, *, timeout: float) -> None:
        self._require_up()
        if name in self.refuses:
            raise TritonError(f"{name} does not load: this CPU lacks avx512_vnni")
        self.loads += 1
        self.ready.add(name)

    async def unload(self, name: str) -> None:
        self._require_up()
        self.ready.discard(name)

    async def reload(self, name: str, *, timeout: float) -> None:
        self.reloads.append(name)
        self.dead.discard(name)

    async def generate(self, name: str, **_: Any) -> Answer:
        self._require_up()
        self.asked += 1
        if name in self.dead:
            raise TritonError(f"{name} gave no answer: its process has died")
        return Answer("yes", "stop", 1, 1)


class Tier:
    """Pods on ports of this machine; the ones in `gone` do not listen."""

    def __init__(self, folder: Path, count: int) -> None:
        self.tritons = [Triton() for _ in range(count)]
        self.folders = [folder / f"pod{number}" for number in range(count)]
        self.apis: list[AgentApi] = []
        self.runners: list[web.AppRunner] = []
        self.addresses: list[str] = []

    async def leave(self, number: int) -> None:
        await self.runners[number].cleanup()


def drive(folder: Path, work: Callable[[Tier, Pods], Awaitable[Any]], count: int = 2) -> Any:
    @asynccontextmanager
    async def served() -> AsyncIterator[tuple[Tier, Pods]]:
        tier = Tier(folder, count)
        for triton, place in zip(tier.tritons, tier.folders, strict=True):
            place.mkdir()
            api = AgentApi(place, triton, TOKEN)  # type: ignore[arg-type]
            runner = web.AppRunner(api.application())
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            tier.apis.append(api)
            tier.runners.append(runner)
            tier.addresses.append(f"127.0.0.1:{runner.addresses[0][1]}")
        try:
            async with AgentResolver(tier.addresses, TOKEN) as find:
                yield tier, Pods("the stable tier", find)
        finally:
            for runner in tier.runners:
                await runner.cleanup()

    async def run() -> Any:
        async with served() as (tier, pods):
            return await work(tier, pods)

    return asyncio.run(run())


async def deploy(pods: Pods, live: LiveRelease) -> str:
    """Under the name that it has."""
    name = await pods.release_name(live)
    await pods.deploy(live.model_copy(update={"name": name}))
    return name


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> LiveRelease:
    folder = tmp_path_factory.mktemp("engine")
    files = folder / "files"
    files.mkdir()
    (files / "golden.jsonl").write_text('{"messages": [], "reference": "a", "answer": "a"}\n')
    artifact: Artifact = commit_engine(Store(f"file://{folder}/store"), "engine-1", files)
    release = Release(model="kubectl", version="1", engine=artifact)
    return LiveRelease(name="", release=release, since=datetime.now(UTC))


def test_every_pod_has_what_is_installed_and_loaded_under_one_name(tmp_path: Path, live: LiveRelease) -> None:
    async def work(tier: Tier, pods: Pods) -> None:
        name = await pods.release_name(live)
        assert name.startswith("kubectl-v1-")
        assert await pods.not_ready(name) == sorted(tier.addresses)
        await deploy(pods, live)
        assert await pods.installed() == await pods.loaded() == {name} and await pods.not_ready(name) == []
        assert await pods.has_engine(live.release)
        assert [prompt.answer for prompt in await pods.golden(live.release)] == ["a"]
        # A name that an earlier image gave it stays, whatever the code of today would call it.
        old = live.model_copy(update={"name": "kubectl-v1-old"})
        assert await deploy(pods, old) == "kubectl-v1-old"
        for each in (name, "kubectl-v1-old"):
            await pods.unload(each)
        for each in (name, "kubectl-v1-old"):
            await pods.remove(each)
        assert await pods.installed() == set() and not await pods.has_engine(live.release)

    drive(tmp_path, work)


def test_a_new_pod_lacks_what_the_others_have_and_is_given_it(tmp_path: Path, live: LiveRelease) -> None:
    async def work(tier: Tier, pods: Pods) -> None:
        name = await deploy(pods, live)
        tier.tritons[1].ready.clear()
        assert await pods.loaded() == {name}  # the other still serves it
        assert await pods.not_ready(name) == [tier.addresses[1]]
        assert await pods.probe(name, 1) is None  # only who has it is asked
        await deploy(pods, live)
        assert await pods.not_ready(name) == []

    drive(tmp_path, work)


def test_a_pod_that_is_away_keeps_nobody_waiting_and_is_named(tmp_path: Path, live: LiveRelease) -> None:
    async def work(tier: Tier, pods: Pods) -> None:
        await tier.leave(1)
        name = await deploy(pods, live)
        assert await pods.loaded() == {name} and await pods.live()
        assert await pods.not_ready(name) == [] and list(await pods.unreachable()) == [tier.addresses[1]]
        await tier.leave(0)
        assert not await pods.live() and len(await pods.unreachable()) == 2
        with pytest.raises(NotAvailableError, match="no pod of the stable tier answers"):
            await pods.loaded()

    drive(tmp_path, work)


def test_who_holds_another_token_is_told_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async def work(tier: Tier, _: Pods) -> None:
        async with AgentResolver(tier.addresses, "another") as find:
            with pytest.raises(NotAvailableError, match="answers: .*the bearer token is missing or wrong"):
                await Pods("the stable tier", find).loaded()

    drive(tmp_path, work)
    assert "the bearer token is missing or wrong" in capsys.readouterr().out


def test_one_server_will_do_where_another_refuses_or_does_not_answer(tmp_path: Path, live: LiveRelease) -> None:
    async def work(tier: Tier, pods: Pods) -> None:
        named = live.model_copy(update={"name": await pods.release_name(live)})
        tier.tritons[1].refuses.add(named.name)
        await pods.deploy(named, any_server=True)
        assert await pods.loaded() == {named.name}
        tier.tritons[1].ready.add(named.name)
        tier.tritons[1].dead.add(named.name)
        assert await pods.probe(named.name, 1) is not None
        assert await pods.probe(named.name, 1, any_server=True) is None
        for _ in range(2):  # the golden prompts of a rollback
            assert (await pods.generate(named.name, messages=[], timeout=5)).text == "yes"
        tier.tritons[0].ready.clear()
        tier.tritons[1].ready.clear()
        tier.tritons[0].refuses.add(named.name)
        with pytest.raises(TritonError, match="avx512_vnni"):
            await pods.deploy(named, any_server=True)

    drive(tmp_path, work)


def test_a_pod_on_its_way_out_is_left_alone(tmp_path: Path, live: LiveRelease) -> None:
    async def work(tier: Tier, pods: Pods) -> None:
        tier.apis[1].leaving = True
        name = await deploy(pods, live)
        assert await pods.not_ready(name) == []
        assert tier.tritons[1].ready == set()

    drive(tmp_path, work)


def test_what_one_pod_refuses_is_told_with_its_reason_and_the_others_have_it(tmp_path: Path, live: LiveRelease) -> None:
    async def work(tier: Tier, pods: Pods) -> None:
        name = await pods.release_name(live)
        tier.tritons[1].refuses.add(name)
        with pytest.raises(TritonError, match=f"{tier.addresses[1]}.*avx512_vnni"):
            await deploy(pods, live)
        assert await pods.not_ready(name) == [tier.addresses[1]] and tier.tritons[0].ready == {name}

    drive(tmp_path, work)


def test_a_pod_that_takes_no_requests_of_the_release_that_is_followed_does_not_matter(
    tmp_path: Path, live: LiveRelease
) -> None:
    async def work(tier: Tier, pods: Pods) -> None:
        name = await pods.release_name(live)
        tier.tritons[1].refuses.add(name)
        tier.tritons[0].ready.add("former")
        await pods.deploy(live.model_copy(update={"name": name}), "former")
        assert await pods.not_ready(name, "former") == []
        assert await pods.not_ready(name, "nowhere") == await pods.not_ready(name) == [tier.addresses[1]]

    drive(tmp_path, work)


def test_a_pod_is_given_a_release_once_whoever_waits_for_it(tmp_path: Path, live: LiveRelease) -> None:
    async def work(tier: Tier, pods: Pods) -> None:
        named = live.model_copy(update={"name": await pods.release_name(live)})
        await pods.start_deploy(named)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await pods.deploy(named)
        await asyncio.gather(pods.deploy(named), pods.deploy(named))
        assert await pods.not_ready(named.name) == []
        assert [triton.loads for triton in tier.tritons] == [1, 1]

    drive(tmp_path, work)


def test_an_engine_that_is_gone_is_an_artifact_error_here_too(tmp_path: Path, live: LiveRelease) -> None:
    gone = live.release.engine.model_copy(update={"uri": live.release.engine.uri.replace("engine-1", "engine-9")})

    async def work(tier: Tier, pods: Pods) -> None:
        with pytest.raises(ArtifactError, match="engine-9"):
            await deploy(pods, live.model_copy(update={"release": live.release.model_copy(update={"engine": gone})}))

    drive(tmp_path, work)


def test_only_the_pod_whose_release_has_died_is_given_a_fresh_one(tmp_path: Path, live: LiveRelease) -> None:
    async def work(tier: Tier, pods: Pods) -> None:
        name = await deploy(pods, live)
        tier.tritons[1].dead.add(name)
        problem = await pods.probe(name, 1)
        assert problem is not None and tier.addresses[1] in str(problem)
        await pods.reload(name)
        assert [triton.reloads for triton in tier.tritons] == [[], [name]]
        assert await pods.probe(name, 1) is None

    drive(tmp_path, work)


def test_requests_take_turns(tmp_path: Path, live: LiveRelease) -> None:
    async def work(tier: Tier, pods: Pods) -> None:
        name = await deploy(pods, live)
        for _ in range(6):
            assert (await pods.generate(name, messages=[], timeout=5)).text == "yes"
        assert [triton.asked for triton in tier.tritons] == [3, 3]

    drive(tmp_path, work)


def test_a_name_that_is_not_known_yet_stands_for_no_pod(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: Any, **__: Any) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)

    async def run() -> None:
        async with AgentResolver(["triton-agents-canary:8003"], TOKEN) as find:
            pods = Pods("the canary tier", find)
            assert not await pods.live() and await pods.unreachable() == {}
            with pytest.raises(NotAvailableError, match="no pod of the canary tier answers"):
                await pods.not_ready("a")

    asyncio.run(run())


def test_a_name_server_that_is_away_takes_no_pods_away(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        async with AgentResolver(["127.0.0.1:8003"], TOKEN) as find:
            before = await find()

            def away(*_: Any, **__: Any) -> None:
                raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

            monkeypatch.setattr(socket, "getaddrinfo", away)
            assert await find() == before and list(before) == ["127.0.0.1:8003"]

    asyncio.run(run())
