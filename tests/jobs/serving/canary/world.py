"""A controller with its whole data plane in one process and in virtual time, under traffic that is drawn at random.

Router and Triton are small models of the real ones; their state outlives the controllers that the tests kill. `Life`
stands between a controller and everything that outlives it, and lets it die at any chosen moment. With two tiers there
is a Triton with an agent in each pod, and a router's request goes to a pod that is ready.

Every request is assigned to an arm, fails, and is slow by draws of its own, so that equal arms differ by chance. The
tests' policy has an `alpha` so small that what they state does not hang on the seed: a canary as good as the champion
is rolled back once in a million rollouts.
"""

from __future__ import annotations

import asyncio
import json
import random
import selectors
from collections.abc import Awaitable, Callable, Coroutine
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from include import durable
from include.artifacts.manifest import Provenance
from include.artifacts.store import Store
from include.errors import ArtifactError
from include.release.rollouts import CanaryPolicy, Quality, Release, RolloutRequest, RolloutStatus
from include.specs.base import Artifact
from jobs.serving.canary.analysis import runs
from jobs.serving.canary.controller import Controller
from jobs.serving.canary.data_plane import DataPlane, Timing
from jobs.serving.canary.servers.local import LocalTriton
from jobs.serving.canary.servers.pods import Pods
from jobs.serving.canary.state import evidence
from jobs.serving.canary.state.records import Records, Rollout
from jobs.serving.canary.traffic.interface import ConflictError, RouterError, releases
from jobs.serving.router.routes import Split
from jobs.serving.triton.agent_client import AgentState
from jobs.serving.triton.client import Answer, NotAvailableError, TritonError

_commit_evidence = evidence.commit

TARGET = "kubectl"
POLICY = CanaryPolicy(
    steps=(0.1, 0.5),
    step_seconds=20,
    look_seconds=5,
    min_requests=200,
    max_seconds=300,
    baseline_requests=50,
    baseline_seconds=30,
    alpha=1e-6,
    quality=Quality(golden_prompts=4),
)
QUICK = CanaryPolicy.model_validate(
    {**POLICY.model_dump(), "steps": (0.5,), "step_seconds": 5, "baseline_requests": 20, "min_requests": 150}
)
"""One step, for tests of what comes before or after the steps."""


class _Selector(selectors.DefaultSelector):
    """Does not wait, but says how long it would have."""

    waited = 0.0

    def select(self, timeout: float | None = None) -> list[Any]:
        ready = super().select(0)
        if not ready and timeout:
            self.waited += timeout
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose time passes only while everybody waits, and then at once. Threads are run in place.

    Attributes:
        in_thread: whether what runs now would be in a thread.
    """

    def __init__(self) -> None:
        self._waits = _Selector()
        super().__init__(self._waits)
        self.in_thread = False
        self.faults: list[str] = []
        self.set_exception_handler(self._keep_fault)

    def _keep_fault(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """What nobody looked at; a dead controller's tasks have nobody left who would."""
        if not isinstance(context.get("exception"), Died):
            self.faults.append(f"{context['message']}: {context.get('exception')!r}")

    def time(self) -> float:
        return self._waits.waited

    def run_in_executor(self, executor: Any, function: Callable[..., Any], *arguments: Any) -> asyncio.Future[Any]:
        future = self.create_future()
        self.in_thread = True
        try:
            future.set_result(function(*arguments))
        except Exception as error:
            future.set_exception(error)
        finally:
            self.in_thread = False
        return future


def run_virtually(work: Coroutine[Any, Any, Any]) -> Any:
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        result = runner.run(work)
        loop = runner.get_loop()
    assert isinstance(loop, VirtualLoop)
    assert loop.faults == []
    return result


class Died(BaseException):
    """The controller is dead: nothing that it does from now on has any effect."""


class FakeTriton:
    """A Triton whose models answer as a test says.

    Attributes:
        behaviour: by release: function of the request's messages to a text, or an exception to raise.
    """

    def __init__(self, world: World, installed: Callable[[], set[str]]) -> None:
        self.world = world
        self.installed = installed
        self.up = True
        self.load_seconds = 0.5
        self.loaded: set[str] = set()
        self.loads: list[str] = []
        self.begun: list[tuple[str, frozenset[str]]] = []
        """Every load that was begun, and what was loaded then."""

    def restart(self) -> None:
        """Killed, and started again empty."""
        self.up = True
        self.loaded.clear()

    def _require_up(self) -> None:
        if not self.up:
            raise NotAvailableError("Triton does not answer")

    async def live(self) -> bool:
        return self.up

    async def states(self) -> dict[str, str]:
        self._require_up()
        return {name: "READY" if name in self.loaded else "" for name in self.installed()}

    async def load(self, name: str) -> None:
        self._require_up()
        if name not in self.installed():
            raise NotAvailableError(f"{name} does not load: no such model")
        if name in self.world.unloadable:
            raise TritonError(f"{name} does not load: this CPU lacks avx512_vnni")
        self.begun.append((name, frozenset(self.loaded)))
        await asyncio.sleep(self.load_seconds)
        self._require_up()
        self.world.dead_stubs.discard(name)
        if name not in self.loaded:
            self.loads.append(name)
        self.loaded.add(name)

    async def unload(self, name: str) -> None:
        self._require_up()
        if name in self.world.hanging:
            await asyncio.sleep(600.0)
        if name in self.world.stuck:
            raise TritonError(f"{name} does not unload")
        self.loaded.discard(name)

    async def reload(self, name: str) -> None:
        await self.unload(name)
        await self.load(name)

    async def generate(
        self, name: str, *, text: Any = None, messages: Any = None, max_tokens: Any = None, timeout: float = 30
    ) -> Answer:
        self._require_up()
        await asyncio.sleep(0.01)
        if name not in self.loaded or name in self.world.dead_stubs:
            raise NotAvailableError(f"{name} gave no answer")
        answer = "x" if messages is None else self.world.answer(name, messages[-1]["content"])
        return Answer(answer, "stop", 3, 3)


class FakePod:
    """A Triton and its agent, as `jobs.serving.triton.agent_client.Agent` shows them to the controller.

    Attributes:
        up: whether the agent answers. `leaving`: whether the pod is on its way out.
        refuses: why nothing can be installed here, if so. `trouble`: why it cannot say what it has, if so.
        install_seconds: how long an engine is copied and verified.
        installs: names, in the order of their installations.
        required: releases without which it is not ready; None before the controller has said so.
    """

    def __init__(self, world: World, name: str) -> None:
        self.name = name
        self.up = True
        self.leaving = False
        self.refuses: str | None = None
        self.trouble: str | None = None
        self.install_seconds = 0.0
        self.installs: list[str] = []
        self.required: set[str] | None = None
        self._world = world
        self._releases: dict[str, Release] = {}
        self.triton = FakeTriton(world, self.installed)

    def installed(self) -> set[str]:
        return set(self._releases)

    @property
    def ready(self) -> bool:
        """What the kubelet sees."""
        alive = self.up and self.trouble is None and not self.leaving and self.triton.up
        return alive and self.required is not None and self.required <= self.triton.loaded

    def has(self, name: str) -> bool:
        return self.triton.up and name in self.triton.loaded and name not in self._world.dead_stubs

    def _require_up(self) -> None:
        if not self.up:
            raise NotAvailableError(f"the agent at {self.name} does not answer")

    async def state(self) -> AgentState:
        self._require_up()
        if self.trouble is not None:
            raise TritonError(f"{self.name}: {self.trouble}")
        ready = frozenset(self.triton.loaded if self.triton.up else ())
        engines = frozenset(release.engine.digest[:16] for release in self._releases.values())
        return AgentState(
            live=self.triton.up, leaving=self.leaving, ready=ready, installed=frozenset(self._releases), engines=engines
        )

    async def install(self, name: str, release: Release, drill: str) -> None:
        self._require_up()
        self.installs.append(name)
        await asyncio.sleep(self.install_seconds)
        self._require_up()
        if self.refuses is not None:
            raise ArtifactError(f"{self.name}: {self.refuses}")
        self._releases[name] = release

    async def remove(self, name: str) -> None:
        self._require_up()
        assert name not in self.triton.loaded, f"{name} is removed from {self.name} while it is loaded"
        self._releases.pop(name, None)

    async def load(self, name: str) -> None:
        self._require_up()
        await self.triton.load(name)
        self._require_up()

    async def reload(self, name: str) -> None:
        self._require_up()
        await self.triton.reload(name)

    async def unload(self, name: str) -> None:
        self._require_up()
        await self.triton.unload(name)

    async def probe(self, name: str, text: str, *, timeout: float = 10.0) -> None:
        self._require_up()
        await self.triton.generate(name, text=text)

    async def generate(self, name: str, *, messages: Any, timeout: float) -> Answer:
        self._require_up()
        return await self.triton.generate(name, messages=messages)

    async def golden(self, engine: str) -> str:
        self._require_up()
        return _golden_rows()

    async def serve(self, names: set[str]) -> None:
        self._require_up()
        self.required = set(names)


class FakeRouter:
    """The router's admin API, and what it counts of its traffic."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.up = True
        self.counting = True
        self.writing = True
        self.refusal: str | None = None
        self.routes: dict[str, dict[str, Any]] = {}
        self.restart()

    def restart(self) -> None:
        """Routes are durable; leases, counts and samples are not."""
        self.up = True
        self.boot = f"boot{self.world.next()}"
        self.leases: dict[str, tuple[str, float]] = {}
        self.periods: dict[str, list[dict[str, Any]]] = {}
        self.kept: dict[str, list[dict[str, Any]]] = {}
        for target in self.routes:
            self._open(target)

    def now(self) -> float:
        return asyncio.get_running_loop().time()

    def _require_up(self) -> None:
        if not self.up:
            raise RouterError("the router cannot be reached")

    def holder(self, target: str) -> str | None:
        holder, until = self.leases.get(target, (None, 0.0))
        return holder if holder and until > self.now() else None

    def weight(self, target: str) -> float:
        route = self.routes[target]
        return route["weight"] if route["holder"] and self.holder(target) == route["holder"] else 0.0

    def _open(self, target: str) -> None:
        route = self.routes[target]
        bound = None if self.world.beyond_count else 0.05
        arms = {arm: _zero(route[arm], bound) if route[arm] else None for arm in ("champion", "canary")}
        opened = {"generation": route["generation"], "weight": None, "slow_seconds": route["slow_seconds"]}
        self.periods.setdefault(target, []).append({**opened, **arms})

    async def state(self) -> dict[str, Any]:
        self._require_up()
        targets = {}
        for name, route in self.routes.items():
            shown = {key: route[key] for key in ("generation", "champion", "canary", "sample", "slow_seconds")}
            targets[name] = {**shown, "weight": self.weight(name), "lease": {"holder": self.holder(name)}}
        return {"boot": self.boot, "targets": targets}

    async def routed(self) -> dict[str, set[str]]:
        return releases(await self.state())

    def refuses(self, target: str) -> str | None:
        return self.refusal

    async def put(self, target: str, route: Any, generation: int, holder: str) -> dict[str, Any]:
        self._require_up()
        if not self.writing:
            raise RouterError("the router answered with 500: the route could not be written")
        if self.routes.get(target, {"generation": 0})["generation"] != generation:
            raise ConflictError("another generation")
        if route.weight > 0 and (route.canary is None or self.holder(target) != holder):
            raise ConflictError("no lease")
        self.world.check_route(route)
        self.routes[target] = {**route.model_dump(), "generation": generation + 1, "holder": holder}
        self._open(target)
        return self.routes[target]

    async def delete(self, target: str) -> None:
        self._require_up()
        self.routes.pop(target, None)
        self.periods.pop(target, None)

    async def lease(self, target: str, holder: str, seconds: float) -> None:
        self._require_up()
        if self.holder(target) not in (None, holder):
            raise ConflictError("another holds the lease")
        self.leases[target] = (holder, self.now() + seconds)

    async def release(self, target: str, holder: str) -> None:
        self._require_up()
        if self.holder(target) not in (None, holder):
            raise ConflictError("another holds the lease")
        self.leases.pop(target, None)

    async def counts(self, target: str) -> dict[str, Any]:
        self._require_up()
        if not self.counting:
            raise RouterError("the router answered with 500")
        periods = json.loads(json.dumps(self.periods.get(target, [])))
        for period in periods:
            period["weight"] = period["weight"] or 0.0
            for counts in filter(None, (period["champion"], period["canary"])):
                counts["in_flight"] = self.world.in_flight.get(counts["release"], 0)
        return {"boot": self.boot, "generations": periods}

    async def samples(self, target: str, after: int) -> dict[str, Any]:
        self._require_up()
        return {"boot": self.boot, "samples": self.kept.get(target, [])[after : after + 500], "lost": 0}

    def serve(self, requests: int) -> None:
        """Answer so many requests now, each by an arm that is drawn with the weight in force."""
        if not self.up:
            return
        for target, route in self.routes.items():
            weight = self.weight(target)
            if self.periods[target][-1]["weight"] not in (None, weight):
                self._open(target)
            period = self.periods[target][-1]
            period["weight"] = weight
            for _ in range(requests):
                arm = "canary" if self.world.drawn(weight) else "champion"
                self._serve_one(target, period, arm, route)

    def _serve_one(self, target: str, period: dict[str, Any], arm: str, route: dict[str, Any]) -> None:
        name, counts = route[arm], period[arm]
        failed = not self.world.serves(arm, name) or self.world.fails(name)
        self.world.client_saw(failed and (arm == "champion" or not self.world.serves("champion", route["champion"])))
        counts["finished"] += 1
        counts["failed"] += failed
        if not failed:
            counts["total"][0][1] += 1
            counts["slow"] += period["slow_seconds"]["total"] is not None and self.world.is_slow(name)
        kept = self.kept.setdefault(target, [])
        prompt = f"prompt {len(kept) % 4}"
        kept.append(
            {
                "seq": len(kept) + 1,
                "generation": period["generation"],
                "arm": arm,
                "release": name,
                "prompt": None,
                "messages": [{"role": "user", "content": prompt}],
                "answer": None if failed else self.world.answer(name, prompt, live=True),
                "failed": failed,
                "empty": False,
                "finish_reason": "stop",
                "greedy": True,
            }
        )


def _golden_rows() -> str:
    rows = [
        {
            "id": str(number),
            "messages": [{"role": "user", "content": f"prompt {number}"}],
            "reference": f"answer {number}",
            "answer": f"answer {number}",
            "exact_match": 1,
        }
        for number in range(4)
    ]
    return "".join(json.dumps(row) + "\n" for row in rows)


def _zero(release: str, bound: float | None) -> dict[str, Any]:
    counts = dict.fromkeys(("finished", "failed", "slow", "in_flight"), 0)
    return {"release": release, **counts, "first_token": [], "total": [[bound, 0]]}


class World:
    """Everything outside the controller.

    Attributes:
        unloadable, stuck, dead_stubs: releases that do not load, do not unload, or whose process has died.
        hanging: releases that take ten minutes to unload.
        altered: versions whose installed engine is no longer what it was.
        in_flight: by release, requests that do not end.
        beyond_count: all answers take longer than the router's last bound.
        failing, slow, garbled: shares, by release, of requests that go wrong.
        weights: of every route that was ever set.
        lost: requests that no arm answered.
        on_save: called with each rollout's record right after it was made durable.
        flush_seconds: how long the disk takes to make a rollout's record durable.
        store_up: whether the store takes evidence.
        stable, canary: the pods of two tiers; none of either on one machine, which has one Triton.
    """

    def __init__(self, folder: Path, stable: int = 0, canary: int = 0, seed: int = 0) -> None:
        self.folder = folder
        self._random = random.Random(seed)
        self.store = Store(f"file://{folder}/store")
        self._number = 0
        self.unloadable: set[str] = set()
        self.stuck: set[str] = set()
        self.hanging: set[str] = set()
        self.altered: set[str] = set()
        self.in_flight: dict[str, int] = {}
        self.beyond_count = False
        self.dead_stubs: set[str] = set()
        self.failing: dict[str, float] = {}
        self.slow: dict[str, float] = {}
        self.garbled: set[str] = set()
        self.garbled_live: set[str] = set()
        self.weights: list[float] = []
        self.sent = self.lost = 0
        self.on_save: Callable[[Rollout], None] = lambda _rollout: None
        self.flush_seconds = 0.0
        self.store_up = True
        self.triton = FakeTriton(self, self.installed)
        self.router = FakeRouter(self)
        self.stable = [FakePod(self, f"stable{number}") for number in range(stable)]
        self.canary = [FakePod(self, f"canary{number}") for number in range(canary)]
        self.tiered = bool(stable)

    def next(self) -> int:
        self._number += 1
        return self._number

    def installed(self) -> set[str]:
        models = self.folder / "models"
        return {path.name for path in models.iterdir()} if models.is_dir() else set()

    def install(self, folder: Path, release: Release, drill: str) -> str:
        name = self.release_name(release, drill)
        engine = folder / "engines" / release.engine.digest[:16]
        engine.mkdir(parents=True, exist_ok=True)
        (engine / "golden.jsonl").write_text(_golden_rows())
        (folder / "models" / name).mkdir(parents=True, exist_ok=True)
        return name

    def release_name(self, release: Release, drill: str) -> str:
        rehearsed = "" if drill == "none" else f"-{drill}"
        return f"{release.model}-v{release.version}-{release.engine.digest[:8]}{rehearsed}"

    def verify(self, folder: Path, release: Release) -> None:
        if release.version in self.altered:
            raise ArtifactError(f"the engine of version {release.version} was altered after it was copied")

    def remove(self, folder: Path, name: str) -> None:
        assert name not in self.triton.loaded, f"{name} is removed while it is loaded"
        (folder / "models" / name).rmdir()

    def answer(self, name: str, prompt: str, live: bool = False) -> str:
        if name in self.garbled or (live and name in self.garbled_live):
            return "words shuffled"
        return prompt.replace("prompt", "answer")

    def fails(self, name: str) -> bool:
        return self.drawn(self.failing.get(name, 0.0))

    def serves(self, arm: str, name: str) -> bool:
        """Whether a request to an arm gets to a Triton that answers with this release."""
        if not self.tiered:
            return self.triton.up and name in self.triton.loaded and name not in self.dead_stubs
        ready = [pod for pod in (self.stable if arm == "champion" else self.canary) if pod.ready]
        return bool(ready) and self._random.choice(ready).has(name)

    def is_slow(self, name: str) -> bool:
        return self.drawn(self.slow.get(name, 0.05))

    def drawn(self, probability: float) -> bool:
        return self._random.random() < probability

    def check_route(self, route: Split) -> None:
        """What must hold for every route that is ever set."""
        if route.weight:
            loaded = [pod.triton.loaded for pod in self.canary] if self.tiered else [self.triton.loaded]
            assert route.canary in set().union(*loaded), "traffic for a canary that is not loaded"
        outcomes = [one.status.outcome for one in self.rollouts() if one.status.name == route.champion]
        assert outcomes, f"{route.champion} was never asked for"
        assert "promoted" in outcomes, f"{route.champion} is champion without a durable promotion"
        self.weights.append(route.weight)

    def rollouts(self) -> list[Rollout]:
        """As they are on disk."""
        records = Records(self.folder / "canary")
        try:
            return records.rollouts()
        finally:
            records.close()

    def client_saw(self, lost: bool) -> None:
        self.sent += 1
        self.lost += lost

    def release(self, version: int) -> Release:
        """A release whose engine is in the store."""
        now = datetime.now(UTC)
        name = f"engine-{version}"
        manifest = self.store.manifest(name)
        if manifest is None:
            with self.store.attempt(name) as attempt:
                (attempt.files / "build.json").write_text(f'{{"version": "{version}"}}')
                manifest, _ = attempt.commit(
                    job="engine",
                    code="0",
                    provenance=Provenance(
                        started=now,
                        finished=now,
                        wall_seconds=0,
                        cpu_seconds=0,
                        peak_rss_bytes=0,
                        host="test",
                        python="3",
                    ),
                )
        artifact = Artifact(uri=self.store.uri(name), digest=manifest.content_digest)
        return Release(model=TARGET, version=str(version), engine=artifact)

    def name(self, version: int) -> str:
        return f"{TARGET}-v{version}-{self.release(version).engine.digest[:8]}"

    def request(self, number: int, expected: int | None = None, **changes: Any) -> RolloutRequest:
        """For a release of version `number`, compared with version `expected`."""
        values: dict[str, Any] = {
            "id": f"release-{number}",
            "kind": "release",
            "target": TARGET,
            "release": self.release(number),
            "expected_champion": str(expected) if expected else None,
            "policy": POLICY,
        }
        return RolloutRequest(**{**values, **changes})

    def rollback(self, rollout: str, version: int | None = None) -> RolloutRequest:
        return RolloutRequest(id=rollout, kind="rollback", target=TARGET, version=str(version) if version else None)


class Clients:
    """So many requests a second through the router, while the context lasts."""

    def __init__(self, world: World, rate: int = 20) -> None:
        self._world = world
        self._rate = rate

    async def __aenter__(self) -> None:
        self._task = asyncio.create_task(self._flow())

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()

    async def _flow(self) -> None:
        while True:
            await asyncio.sleep(1)
            self._world.router.serve(self._rate)


class Life:
    """One life of a controller in a world; may die before its n-th action.

    An action is a durable write, or a call to the data plane.
    """

    def __init__(self, world: World, dies_at: int | None = None) -> None:
        self.world = world
        self.actions = 0
        self.dead = False
        self._dies_at = dies_at
        if world.tiered:
            stable, canary = self._pods("the stable tier", world.stable), self._pods("the canary tier", world.canary)
        else:
            stable = canary = LocalTriton(
                world.folder,
                self._mortal(world.triton),
                install=self._guard(world.install),
                uninstall=self._guard(world.remove),
                verify=self._guard(world.verify),
                name_of=world.release_name,
            )
        data_plane = DataPlane(
            self._mortal(world.router),
            stable=stable,
            canary=canary,
            store=world.store.root,
            boot=f"life{world.next()}",
            timing=Timing(resync=2, lease=10, outage=30, probe=5, golden=5, drain=20, retry=1),
        )
        self.records = Records(world.folder / "canary")
        for save in ("save_target", "save_rollout", "forget_target", "forget_rollout"):
            setattr(self.records, save, self._guard_async(getattr(self.records, save)))
        save_rollout = self.records.save_rollout

        async def save_and_report(rollout: Rollout) -> None:
            await asyncio.sleep(world.flush_seconds)
            await save_rollout(rollout)
            world.on_save(rollout)

        self.records.save_rollout = save_and_report  # type: ignore[method-assign]
        self.controller = Controller(self.records, data_plane)

    def _pods(self, name: str, pods: list[FakePod]) -> Pods:
        async def find() -> dict[str, Any]:
            return {pod.name: self._mortal(pod) for pod in pods}

        return Pods(name, find, name_of=self.world.release_name)

    def _mortal(self, part: Any) -> Any:
        names = [name for name in dir(part) if asyncio.iscoroutinefunction(getattr(part, name))]
        asked = {"refuses": part.refuses} if hasattr(part, "refuses") and part is self.world.router else {}
        return SimpleNamespace(**{name: self._guard_async(getattr(part, name)) for name in names}, **asked)

    def _guard(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def guarded(*arguments: Any) -> Any:
            self._live_on()
            return function(*arguments)

        return guarded

    def _guard_async(self, function: Callable[..., Any]) -> Callable[..., Any]:
        async def guarded(*arguments: Any, **options: Any) -> Any:
            self._live_on()
            result = await function(*arguments, **options)
            if self.dead:
                raise Died
            return result

        return guarded

    def _live_on(self) -> None:
        self.actions += 1
        self.dead = self.dead or self.actions == self._dies_at
        if self.dead:
            raise Died

    async def __aenter__(self) -> Life:
        runs.durable = SimpleNamespace(append_line=self._guard(durable.append_line))
        evidence.commit = self._commit_evidence
        try:
            await self.controller.start()
        except Died:
            return self
        return self

    async def __aexit__(self, *_: object) -> None:
        self.dead = True
        await self.controller.close()
        runs.durable = durable
        evidence.commit = _commit_evidence

    def _commit_evidence(self, *arguments: Any) -> None:
        self._live_on()
        if not self.world.store_up:
            raise OSError("the store does not answer")
        _commit_evidence(*arguments)

    async def until(self, true: Callable[[], Any], seconds: float = 2000) -> Any:
        """Wait until it is true, or this life has ended."""
        async with asyncio.timeout(seconds):
            while not self.dead:
                if found := true():
                    return found
                await asyncio.sleep(0.25)
        return None

    async def until_ended(self, rollout: str) -> RolloutStatus | None:
        def ended() -> RolloutStatus | None:
            status = self.controller.rollout(rollout)
            return status if status.ended else None

        return await self.until(ended)

    async def release(self, request: RolloutRequest) -> RolloutStatus | None:
        """Ask for a rollout, and wait for its end."""
        await self.controller.submit(request)
        return await self.until_ended(request.id)


def with_champion(world: World, work: Callable[[Life], Awaitable[Any]]) -> Any:
    """Do something in the life of a controller that has version 1 live, under traffic."""

    async def run() -> Any:
        async with Life(world) as life, Clients(world):
            first = await life.release(world.request(1))
            assert first is not None and first.outcome == "promoted", first
            return await work(life)

    return run_virtually(run())
