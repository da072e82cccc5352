"""What goes wrong around a release: its judge is blind, both arms are bad, what it rests on is gone, the disk is full.

Given version 1 live under constant traffic, and version 2 on its way; whatever happens, the clients are served by a
release that answers, and the rollout says in a sentence what became of it.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from include.release.rollouts import RolloutRequest
from tests.faults.scenario import scenario
from tests.faults.serving.conftest import Live
from tests.faults.serving.proxy import Spoil, broken_off
from tests.jobs.serving.canary.services import TARGET, TOKEN, Services, make_engines

WithLive = Callable[..., None]
Reads = Callable[[str], None]

CANARY = "-v2-"
"""In the name of version 2's release, and so in the path by which the router asks it."""


# The judge is blind.


async def not_found(request: web.Request) -> web.StreamResponse:
    return web.Response(status=500, text="out of order")


async def no_json(request: web.Request) -> web.StreamResponse:
    return web.Response(body=b"\x00\xff<html>", content_type="application/json")


async def other_json(request: web.Request) -> web.StreamResponse:
    return web.json_response([1, {"boot": None}])


async def other_counts(request: web.Request) -> web.StreamResponse:
    return web.json_response({"boot": "x", "generations": [{"generation": "two", "weight": None, "champion": 5}]})


def only_counts(spoil: Spoil) -> Spoil:
    async def spoilt(request: web.Request) -> web.StreamResponse | None:
        return await spoil(request) if request.path.endswith(("/counts", "/samples")) else None

    return spoilt


@scenario(
    given="a canary with traffic",
    when="the router's counts are gone, or garbage, until the time is over",
    then="it is not promoted, the verdict is inconclusive and says why, no client notices",
)
@pytest.mark.parametrize("spoil", [not_found, no_json, other_json, other_counts])
def test_counts_gone(with_live: WithLive, reads: Reads, spoil: Spoil) -> None:
    async def body(live: Live) -> None:
        services = live.services
        rollout = (await live.canary_under_traffic(max_seconds=6)).id
        live.controller_to_router.spoil = only_counts(spoil)
        await services.until(rollout, lambda status: status.outcome is not None)
        # It would wait two minutes for the end of requests that it cannot see.
        live.controller_to_router.spoil = None
        status = await live.ended(rollout, "inconclusive")
        assert any("the router's counts could not be read" in reason for reason in status.reasons)
        await live.serves(1)
        await live.nobody_noticed()
        reads("; ".join(status.reasons[:2]))

    with_live(body)


@scenario(
    given="a canary with traffic",
    when="the router's counts are gone for three seconds",
    then="the rollout waits, and is promoted on what is counted then",
)
def test_counts_gone_for_a_while(with_live: WithLive, reads: Reads) -> None:
    async def body(live: Live) -> None:
        services = live.services
        rollout = (await live.canary_under_traffic()).id
        live.controller_to_router.spoil = only_counts(not_found)
        blind = await services.until(
            rollout, lambda status: any("counts could not be read" in reason for reason in status.reasons)
        )
        assert blind.outcome is None
        await asyncio.sleep(3)
        live.controller_to_router.spoil = None
        await live.ended(rollout, "promoted")
        await live.serves(2)
        await live.nobody_noticed()
        reads(next(reason for reason in blind.reasons if "counts could not be read" in reason))

    with_live(body)


def nobody_asks(policy: str, then: str) -> pytest.MarkDecorator:
    return scenario(given=f"a policy that says {policy} to too little evidence", when="no request comes", then=then)


@pytest.mark.parametrize(
    ("inconclusive", "at_least"),
    [
        pytest.param(
            "roll_back", 3, marks=nobody_asks("roll_back", "inconclusive once its time is over; it goes back")
        ),
        pytest.param("extend", 6, marks=nobody_asks("extend", "inconclusive after twice the time; it goes back")),
        pytest.param("hold", 3, marks=nobody_asks("hold", "it is held until a person aborts it, and then goes back")),
    ],
)
def test_zero_traffic(with_live: WithLive, reads: Reads, inconclusive: str, at_least: float) -> None:
    async def body(live: Live) -> None:
        services = live.services
        request = services.request(2, 1, max_seconds=3, baseline_seconds=1, inconclusive=inconclusive)
        await services.ask(request)
        if inconclusive == "hold":
            held = await services.until(request.id, lambda status: status.state == "held")
            reads(held.notes[-1].message)
            await services.call("POST", f"/rollouts/{request.id}/abort", {"reason": "nobody asks for it at night"})
            status = await live.ended(request.id, "rolled_back")
            assert status.reasons == ("aborted: nobody asks for it at night",)
        else:
            status = await live.ended(request.id, "inconclusive")
            assert f"not enough evidence after {at_least:.0f} s" in status.reasons[0]
            assert any("0 of" in reason for reason in status.reasons)
            reads("; ".join(status.reasons[:2]))
        await live.serves(1)

    with_live(body, rate=0)


# Others want something at the same time.


@scenario(
    given="a canary with traffic",
    when="a newer release of the same model is asked for",
    then="it is refused and told which rollout goes on; that one ends as if nothing had been",
)
def test_a_newer_release_meanwhile(with_live: WithLive, reads: Reads) -> None:
    async def body(live: Live) -> None:
        services = live.services
        rollout = (await live.canary_under_traffic()).id
        newer = services.request(1, 1, name="newer").model_dump(mode="json")
        code, document = await services.call("POST", "/rollouts", newer)
        assert (code, document["rollout"]) == (409, rollout)
        reads(document["error"])
        await live.ended(rollout, "promoted")
        code, _ = await services.call("GET", "/rollouts/newer")
        assert code == 404
        await live.serves(2)
        await live.nobody_noticed()

    with_live(body)


@scenario(
    given="a rollout that is just promoted, and waits for the last stream of the former champion",
    when="rollback is pressed",
    then="the promotion is finished first, then the former champion takes all of the traffic again",
)
def test_rollback_pressed_while_promoting(with_live: WithLive, reads: Reads) -> None:
    async def body(live: Live) -> None:
        services = live.services
        pressed, let_go = asyncio.Event(), asyncio.Event()

        async def hold_one(request: web.Request) -> None:
            if b"hold this one" in await request.read():
                pressed.set()
                await let_go.wait()

        live.router_to_triton.spoil = hold_one
        request = services.request(2, 1)
        async with aiohttp.ClientSession() as session:
            url = f"http://127.0.0.1:{services.router_port}/v1/completions"
            held = asyncio.create_task(session.post(url, json={"model": TARGET, "prompt": "hold this one"}))
            await pressed.wait()
            await services.ask(request)
            await services.until(request.id, lambda status: status.state == "promoted")
            await services.ask(RolloutRequest(id="back", kind="rollback", target=TARGET))
            assert (await services.until("back", lambda status: True)).state == "pending"
            let_go.set()
            assert (await held).status == 200
        promoted = await live.ended(request.id, "promoted")
        back = await live.ended("back", "promoted")
        assert promoted.notes[-1].time <= back.notes[0].time
        await live.serves(1)
        await live.nobody_noticed()
        reads(back.notes[-2].message)

    with_live(body, router=("--total-seconds", "100"))


# An arm is bad.


def fails_every(number: int, *where: str) -> Spoil:
    """Every so many of the requests to an arm fail."""
    seen = 0

    async def spoil(request: web.Request) -> web.StreamResponse | None:
        nonlocal seen
        if "generate" not in request.path or not any(part in request.path for part in where):
            return None
        seen += 1
        return web.json_response({"error": "INTERNAL: out of memory"}, status=500) if seen % number == 0 else None

    return spoil


@scenario(
    given="a champion that fails a third of its requests",
    when="a canary that fails as often is released",
    then="the canary is not blamed, and not promoted either: the verdict is inconclusive",
)
def test_both_arms_bad(with_live: WithLive, reads: Reads) -> None:
    async def body(live: Live) -> None:
        services = live.services
        live.router_to_triton.spoil = fails_every(3, "-v1-", CANARY)
        # A rescue by the champion is asked for in the same way, so that it fails as often.
        status = await live.roll_out(services.request(2, 1, max_seconds=12), "inconclusive")
        assert status.figures["canary_failed"] > 0 and status.figures["champion_failed"] > 0
        assert any("that does not yet show a rate below 0.1" in reason for reason in status.reasons)
        live.router_to_triton.spoil = None
        await live.serves(1)
        reads(next(reason for reason in status.reasons if "does not yet show" in reason))

    with_live(body)


@scenario(
    given="a champion that fails a third of its requests",
    when="a canary without a fault is released",
    then="it is promoted: a bad champion does not keep a good one back",
)
def test_the_champion_alone_is_bad(with_live: WithLive, reads: Reads) -> None:
    async def body(live: Live) -> None:
        services = live.services
        live.router_to_triton.spoil = fails_every(3, "-v1-")
        status = await live.roll_out(services.request(2, 1), "promoted")
        assert status.figures["champion_failed"] > 0
        await live.serves(2)
        reads(status.notes[-1].message)

    with_live(body)


@scenario(
    given="a release that passes its golden prompts",
    when="under traffic its answers come in time, but as word salad (drill)",
    then="it is rolled back for its quality, and every client got an answer",
)
def test_latency_fine_but_text_garbage(with_live: WithLive, reads: Reads) -> None:
    async def body(live: Live) -> None:
        services = live.services
        status = await live.roll_out(services.request(2, 1, "garbled"), "rolled_back")
        assert status.reasons[0].startswith(("quality: ", "golden prompts: "))
        assert not any(reason.startswith(("errors", "latency")) for reason in status.reasons)
        await live.serves(1)
        await live.nobody_noticed()
        reads(status.reasons[0])

    with_live(body)


PIECE = {"text_output": "pods", "finish_reason": "", "prompt_tokens": 3, "completion_tokens": 1}


def event(document: Any) -> bytes:
    return b"data: " + json.dumps(document).encode() + b"\n\n"


GARBAGE = {
    "nothing": b"",
    "invalid UTF-8": b'data: {"text_output": "\xed\xa0\x80\xff", "finish_reason": "stop"}\n\n',
    "another form": event({"choices": []}),
    "a line without end": b"data: " + b"x" * 3_000_000,
    "half a surrogate pair": event({**PIECE, "text_output": "\ud800", "finish_reason": "stop"}),
    "brackets without end": b"data: " + b"[" * 100_000 + b"\n\n",
    "a number of tokens that no field holds": event({**PIECE, "finish_reason": "stop", "completion_tokens": 2**40}),
}


@scenario(
    given="a canary whose answers are garbage on the wire (empty, not UTF-8, not JSON, without end)",
    when="it gets its first share of the traffic",
    then="the champion answers in its place, it is rolled back for its errors, no client notices",
)
@pytest.mark.parametrize("garbage", GARBAGE)
def test_garbage_on_the_wire(with_live: WithLive, reads: Reads, garbage: str) -> None:
    async def spoil(request: web.Request) -> web.StreamResponse | None:
        if CANARY not in request.path or "generate" not in request.path:
            return None
        body = GARBAGE[garbage]
        whole = body if request.path.endswith("_stream") else body.removeprefix(b"data: ")
        return web.Response(body=whole, content_type="text/event-stream")

    async def body(live: Live) -> None:
        services = live.services
        live.router_to_triton.spoil = spoil
        status = await live.roll_out(services.request(2, 1), "rolled_back")
        assert status.reasons[0].startswith("errors: "), services.describe(status)
        assert "bug " not in services.log("router")
        await live.serves(1)
        await live.nobody_noticed()
        reads(status.reasons[0])

    with_live(body)


@scenario(
    given="a canary whose streams break off after their first piece",
    when="it gets its first share of the traffic",
    then="those clients are told so in the stream, nobody else notices, and it is rolled back for its errors",
)
def test_streams_cut(with_live: WithLive, reads: Reads) -> None:
    async def spoil(request: web.Request) -> web.StreamResponse | None:
        if CANARY in request.path and request.path.endswith("_stream"):
            return await broken_off(request, event(PIECE))
        return None

    async def body(live: Live) -> None:
        services = live.services
        live.router_to_triton.spoil = spoil
        status = await live.roll_out(services.request(2, 1, max_seconds=90), "rolled_back")
        assert status.reasons[0].startswith("errors: "), services.describe(status)
        await live.serves(1)
        told = live.clients.failed
        assert told and all("the model failed to answer: try again" in one for one in told)
        assert len(told) == live.router_to_triton.spoilt
        reads(status.reasons[0])

    with_live(body)


@scenario(
    given="a canary with traffic, and limits of two seconds on an answer",
    when="its process hangs (SIGSTOP)",
    then="the champion answers in its place, begun streams are told, and it is rolled back without a trace",
)
def test_triton_slower_than_its_limits(with_live: WithLive, reads: Reads) -> None:
    async def body(live: Live) -> None:
        services = live.services
        canary = await live.canary_under_traffic()
        rollout, name = canary.id, canary.name
        assert name is not None
        (stub,) = stubs(services.folder, name)
        stub.send_signal(signal.SIGSTOP)
        try:
            status = await live.ended(rollout, "rolled_back", seconds=170)
            await live.serves(1)
        finally:
            stub.send_signal(signal.SIGCONT)
        async with asyncio.timeout(120):
            while (services.folder / "models" / name).exists() or stubs(services.folder, name):
                await asyncio.sleep(0.2)
        begun, live.clients.failed = live.clients.failed, []
        assert all("the model took too long: try again" in one for one in begun) and len(begun) <= 5
        await live.nobody_noticed()
        reads(status.reasons[0])

    with_live(body, router=("--total-seconds", "2", "--first-token-seconds", "2"))


class Stub:
    """A process of tritonserver that runs a release."""

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def send_signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)


def stubs(folder: Path, name: str) -> list[Stub]:
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            arguments = (process / "cmdline").read_bytes()
        except OSError:
            continue
        if f"{folder}/models/{name}/1/model.py".encode() in arguments:
            found.append(Stub(int(process.name)))
    return found


# What it rests on is gone.


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)


def deleted_in_store(services: Services) -> None:
    shutil.rmtree(store_folder(services))


def flipped_in_store(services: Services) -> None:
    flip(next(store_folder(services).rglob("model.bin")))


def store_folder(services: Services) -> Path:
    return Path(services.engines[1].uri.removeprefix("file://"))


@pytest.mark.parametrize(
    ("damage", "outcome", "says"),
    [
        pytest.param(
            deleted_in_store,
            "refused",
            "is gone",
            marks=scenario(
                given="a former release that is no longer loaded",
                when="its engine is deleted in the store, and rollback is pressed",
                then="the rollback is refused in a sentence, and the champion goes on",
            ),
        ),
        pytest.param(
            flipped_in_store,
            "rolled_back",
            "model.bin",
            marks=scenario(
                given="a former release that is no longer loaded",
                when="one bit of its engine flips in the store, and rollback is pressed",
                then="the engine is not loaded, the sentence names it, and the champion goes on",
            ),
        ),
    ],
)
def test_an_engine_is_gone_before_its_rollback(
    with_live: WithLive, reads: Reads, tmp_path: Path, damage: Callable[[Services], None], outcome: str, says: str
) -> None:
    async def body(live: Live) -> None:
        services = live.services
        former = (await services.target()).champion.name
        await live.roll_out(services.request(2, 1, warm_seconds=0.5), "promoted")
        async with asyncio.timeout(60):
            while (services.folder / "models" / former).exists():
                await asyncio.sleep(0.1)
        damage(services)
        status = await live.roll_out(RolloutRequest(id="back", kind="rollback", target=TARGET), outcome)
        assert says in status.reasons[0]
        await live.serves(2)
        await live.nobody_noticed()
        reads(status.reasons[0])

    # Engines of its own: they are damaged.
    with_live(body, engines=make_engines(tmp_path / "made"))


@scenario(
    given="a live release",
    when="its private copy of the engine is altered on the disk, and Triton is killed",
    then="it does not come back with other bytes, and the log names the folder and the remedy",
)
def test_the_installed_copy_is_altered(with_live: WithLive, reads: Reads) -> None:
    async def body(live: Live) -> None:
        services = live.services
        name = (await services.target()).champion.name
        (copy,) = (services.folder / "engines").iterdir()
        flip(next(copy.rglob("model.bin")))
        services.kill("triton")
        services.start("triton")
        line = await logged(services, "canary", "was altered after it was copied")
        assert not stubs(services.folder, name)
        shutil.rmtree(copy)
        await live.serves(1)
        reads(line)

    with_live(body)


@pytest.mark.parametrize(
    "whose",
    [
        pytest.param(
            "champion",
            marks=scenario(
                given="a live release",
                when="its folder in Triton's repository is deleted",
                then="it is put there again, and the clients are served",
            ),
        ),
        pytest.param(
            "canary",
            marks=scenario(
                given="a canary with traffic",
                when="its folder in Triton's repository is deleted",
                then="the rollout ends, and one whole release has all traffic",
            ),
        ),
    ],
)
def test_a_models_folder_is_deleted_under_triton(with_live: WithLive, reads: Reads, whose: str) -> None:
    async def body(live: Live) -> None:
        services = live.services
        name = (await services.target()).champion.name
        if whose == "canary":
            # Long enough for the controller to notice before it is promoted.
            canary = await live.canary_under_traffic(step_seconds=6)
            name = canary.name
        folder = services.folder / "models" / name
        shutil.rmtree(folder)
        if whose == "canary":
            status = await live.ended(canary.id, "promoted", restarts=1)
            await live.serves(2)
            reads(status.notes[-2].message)
        else:
            async with asyncio.timeout(30):
                while not (folder / "config.pbtxt").exists():
                    await asyncio.sleep(0.1)
            # What is on the disk now is what a restart finds.
            services.kill("triton")
            services.start("triton")
            await live.serves(1)
            reads((await logged(services, "canary", f"release={name} reason")).strip())

    with_live(body)


async def logged(services: Services, name: str, words: str) -> str:
    """The newest line of a service's log with these words, once there is one."""
    async with asyncio.timeout(60):
        while True:
            if lines := [line for line in services.log(name).splitlines() if words in line]:
                return lines[-1]
            await asyncio.sleep(0.1)


# Nothing can be written any more.


@pytest.fixture
def full(request: pytest.FixtureRequest) -> Callable[[Services, str, bool], None]:
    """No file of this service can grow any more, its log included, or they can again."""

    def switch(services: Services, name: str, on: bool) -> None:
        _, hard = resource.prlimit(services.processes[name].pid, resource.RLIMIT_FSIZE)
        resource.prlimit(services.processes[name].pid, resource.RLIMIT_FSIZE, (0 if on else hard, hard))

    return switch


@pytest.mark.parametrize(
    ("whose", "sign"),
    [
        pytest.param(
            "router",
            "route could not be written",
            marks=scenario(
                given="a canary with traffic",
                when="the router can write nothing any more, for as long as its controller lets it wait",
                then="the old routes stay whole, the canary loses its traffic, and with space again the rollout ends",
            ),
        ),
        pytest.param(
            "canary",
            "a fault of the controller",
            marks=scenario(
                given="a canary with traffic",
                when="the controller can write nothing any more, for ten seconds",
                then="its canary loses its traffic, no record is torn, and with space again the rollout ends",
            ),
        ),
    ],
)
def test_a_full_disk_under(
    with_live: WithLive, reads: Reads, full: Callable[[Services, str, bool], None], whose: str, sign: str
) -> None:
    async def body(live: Live) -> None:
        services = live.services
        rollout = (await live.canary_under_traffic()).id
        full(services, whose, True)
        # The controller is patient with its router for a minute.
        async with asyncio.timeout(100):
            while (await services.route())["weight"]:
                await asyncio.sleep(0.1)
        records_are_whole(services)
        await asyncio.sleep(3)
        sent = live.clients.sent
        await live.nobody_noticed()
        assert live.clients.sent > sent
        full(services, whose, False)
        status = await live.ended(rollout, "promoted", restarts=1)
        records_are_whole(services)
        await live.serves(2)
        await live.nobody_noticed()
        found = [note.message for note in status.notes if sign in note.message]
        reads(found[0] if found else await logged(services, "canary", sign))

    with_live(body)


def records_are_whole(services: Services) -> None:
    assert json.loads((services.folder / "router.json").read_bytes())["targets"]
    for path in (services.folder / "canary").rglob("*.json"):
        json.loads(path.read_bytes())


@scenario(
    given="the serving folder on a small disk, and a canary with traffic",
    when="something fills the disk, and the router is killed and started again on it",
    then="the clients are served by the routes from before; with space again the rollout ends",
)
def test_the_whole_disk_is_full(with_live: WithLive, reads: Reads, small_disk: Path) -> None:
    async def body(live: Live) -> None:
        services = live.services
        rollout = (await live.canary_under_traffic()).id
        filler = small_disk / "filler"
        fill(filler)
        async with asyncio.timeout(60):
            while (await services.route())["weight"]:
                await asyncio.sleep(0.1)
        await live.nobody_noticed()
        fill(filler)
        services.kill("router")
        services.start("router")
        async with aiohttp.ClientSession() as session, asyncio.timeout(30):
            while not await answers(session, services):
                await asyncio.sleep(0.1)
        records_are_whole(services)
        filler.unlink()
        status = await live.ended(rollout, "promoted", restarts=1)
        await live.serves(2)
        reads(next(note.message for note in status.notes if "begins again" in note.message))

    with_live(body, folder=small_disk)


def fill(path: Path) -> None:
    with path.open("ab", buffering=0) as stream:
        for size in (1 << 20, 1 << 12, 1):
            try:
                while stream.write(b"\0" * size):
                    pass
            except OSError:
                continue


async def answers(session: aiohttp.ClientSession, services: Services) -> bool:
    try:
        async with session.post(
            f"http://127.0.0.1:{services.router_port}/v1/completions", json={"model": TARGET, "prompt": "x"}
        ) as response:
            return response.status == 200
    except aiohttp.ClientError:
        return False


# The controller is not there.


@scenario(
    given="a canary with traffic",
    when="the controller is stopped (SIGSTOP) until its lease has expired, and goes on then",
    then="the weight is 0 within the lease, no client notices, and afterwards the rollout ends on one whole release",
)
def test_the_lease_expires_under_a_stopped_controller(with_live: WithLive, reads: Reads) -> None:
    async def body(live: Live) -> None:
        services = live.services
        rollout = (await live.canary_under_traffic()).id
        services.signal("canary", signal.SIGSTOP)
        began = time.monotonic()
        try:
            async with asyncio.timeout(30):
                while (await services.route())["weight"]:
                    await asyncio.sleep(0.1)
            assert time.monotonic() - began < 11
            generation = (await services.route())["generation"]
            await asyncio.sleep(1)
            assert (await services.route())["generation"] == generation
        finally:
            services.signal("canary", signal.SIGCONT)
        await live.ended(rollout, "promoted")
        await live.serves(2)
        await live.nobody_noticed()
        reads(await logged(services, "router", "lease_lapsed"))

    with_live(body)


@scenario(
    given="a canary with traffic",
    when="the file with the token gets another one",
    then="those that run go on with the one that they have, and whoever comes with the new one is told",
)
def test_the_token_changes(with_live: WithLive, reads: Reads) -> None:
    async def body(live: Live) -> None:
        services = live.services
        rollout = (await live.canary_under_traffic()).id
        (services.folder / "token").write_text("another")
        code, document = await services.call("GET", f"/rollouts/{rollout}", token="another")
        assert code == 401
        await live.ended(rollout, "promoted")
        await live.serves(2)
        services.processes["canary"].send_signal(signal.SIGTERM)
        services.processes["router"].send_signal(signal.SIGTERM)
        for name in ("canary", "router"):
            assert await asyncio.to_thread(services.processes[name].wait, 40) == 0
        services.start("router", "canary")
        async with asyncio.timeout(60):
            while (await status_of(services, "another")) != 200:
                await asyncio.sleep(0.2)
        assert await status_of(services, TOKEN) == 401
        reads(document["error"])

    with_live(body)


async def status_of(services: Services, token: str) -> int:
    try:
        return (await services.call("GET", f"/targets/{TARGET}", token=token))[0]
    except aiohttp.ClientError:
        return 0
