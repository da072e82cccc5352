"""Whatever dies, and whenever: afterwards the champion answers, nothing is half, and the status says what happened.

A controller dies before each of its actions in turn (every durable write, every call to the data plane), which is
after the one before; another life takes up the same folder.
"""

from __future__ import annotations

import asyncio
import gc
import os

import pytest

from include.errors import DataError
from include.release.rollouts import RolloutStatus
from jobs.serving.canary.state.records import Rollout
from tests.jobs.serving.canary.world import QUICK, TARGET, Clients, Life, World, run_virtually, with_champion


async def _settle(life: Life, rollout: str) -> RolloutStatus:
    status = await life.until_ended(rollout)
    assert status is not None
    await life.until(lambda: life.controller.target(TARGET).healthy, 60)
    await asyncio.sleep(6)  # the champion first, the warm release at the next resync
    return status


def _check(world: World, life: Life, status: RolloutStatus, may_serve: int) -> None:
    """What holds after everything has ended."""
    target = life.controller.target(TARGET)
    route = world.router.routes[TARGET]
    live = {world.name(may_serve)} if status.outcome == "promoted" else {world.name(1)}
    assert {target.champion.name} == live
    assert (route["champion"], route["canary"], route["weight"]) == (target.champion.name, None, 0.0)
    warm = {previous.name for previous in target.previous[:1]}
    assert world.triton.loaded == world.installed() == live | warm
    assert target.rollout is None and target.healthy
    assert world.router.holder(TARGET) is None or world.router.weight(TARGET) == 0
    assert status.reasons or status.outcome == "promoted"
    assert status.evidence is not None
    assert [one.status.state for one in world.rollouts()] == ["finished"] * len(world.rollouts())
    assert not list((world.folder / "canary").rglob(".*")), "no temporary file is left"


@pytest.fixture(autouse=True)
def _quick_disk(monkeypatch):
    """Only processes die here, not the power: what was written is there for the next."""
    monkeypatch.setattr(os, "fsync", lambda _descriptor: None)
    yield
    # What the dead leave behind goes now: collected within `ast.parse` it trips CPython 3.11 (gh-106905).
    gc.collect()


def _live_one(world: World) -> None:
    async def work():
        async with Life(world) as life:
            status = await life.release(world.request(1))
            assert status.outcome == "promoted"

    run_virtually(work())


async def _die_and_go_on(world: World, request, dies_at: int) -> tuple[bool, Rollout | None, RolloutStatus, Life]:
    """Return whether it died, the record that it left then, and how the next life ended the rollout."""
    async with Clients(world):
        async with Life(world, dies_at) as life:
            if not life.dead:
                try:
                    await life.controller.submit(request)
                except BaseException:
                    assert life.dead
            ended = (
                await life.until(lambda: life.controller.rollout(request.id).ended and life) if not life.dead else None
            )
            died = ended is None
        assert world.router.weight(TARGET) in (0.0, 0.5)
        left = next((one for one in world.rollouts() if one.id == request.id), None)
        async with Life(world) as next_life:
            await next_life.controller.submit(request)
            status = await _settle(next_life, request.id)
            return died, left, status, next_life


def _restarts(left: Rollout | None) -> int:
    """Return how often a rollout has to begin again that a controller has left in this state."""
    began = left is not None and left.status.state not in ("pending", "precheck")
    return int(began and left.status.outcome is None)


@pytest.mark.parametrize("kind", ["good", "bad", "rollback"])
def test_a_controller_that_dies_at_any_action_leaves_nothing_half(tmp_path, kind):
    right = "rolled_back" if kind == "bad" else "promoted"
    for action in range(1, 1000):
        folder = tmp_path / str(action)
        folder.mkdir()
        world = World(folder, seed=action)
        _live_one(world)
        world.router.restart()
        if kind == "rollback":

            async def promote(world: World = world) -> None:
                async with Life(world) as life, Clients(world):
                    await life.release(world.request(2, 1, policy=QUICK))

            run_virtually(promote())
            world.router.restart()
            request, result = world.rollback("back"), 1
        else:
            request, result = world.request(2, 1, policy=QUICK), 2
            if kind == "bad":
                world.failing[world.name(2)] = 0.5
        died, left, status, life = run_virtually(_die_and_go_on(world, request, action))
        assert left is None or left.status.outcome in (None, right)
        assert (status.outcome, status.restarts) == (right, _restarts(left)), f"action {action}: {status}"
        _check(world, life, status, result)
        assert world.lost == 0, f"action {action}: {world.lost} of {world.sent} requests lost"
        if not died:
            break
    else:
        raise AssertionError("it never ended without dying")
    assert action > 25


def test_a_controller_that_dies_again_and_again_gives_up_and_says_so(world):
    async def work():
        async with Clients(world):
            async with Life(world) as life:
                await life.release(world.request(1))
                await life.controller.submit(world.request(2, 1))
                await life.until(lambda: 0.1 in world.weights)
            for _ in range(2):
                del world.weights[:]
                async with Life(world) as life:
                    await life.until(lambda: 0.1 in world.weights)
            async with Life(world) as life:
                status = await _settle(life, "release-2")
                _check(world, life, status, 2)
                return status

    status = run_virtually(work())
    assert (status.outcome, status.restarts) == ("rolled_back", 3)
    assert "it had to begin again 3 times: the controller was interrupted" in status.reasons[0]
    assert world.lost == 0


def test_a_dead_controllers_canary_has_no_traffic_once_the_lease_has_lapsed(world):
    async def work():
        async with Clients(world):
            async with Life(world) as life:
                await life.release(world.request(1))
                await life.controller.submit(world.request(2, 1))
                await life.until(lambda: 0.1 in world.weights)
            before = world.router.weight(TARGET)
            await asyncio.sleep(11)
            return before, world.router.weight(TARGET)

    assert run_virtually(work()) == (0.1, 0)


MOMENTS = {
    "load": ("load", 0),
    "smoke": ("smoke", 0),
    "baseline": ("step", 0),
    "step": ("step", 0.1),
    "promoted": ("promoted", 0),
}
"""State and weight of the record right after which something dies."""


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("what", ["router", "triton", "triton away", "router away"])
def test_router_or_triton_dies_at_any_state(world, moment, what):
    async def work(life):
        part = world.router if "router" in what else world.triton
        down = asyncio.Event()

        def take_down(rollout: Rollout) -> None:
            if (rollout.status.state, rollout.status.weight) == MOMENTS[moment] and not down.is_set():
                part.up = False
                down.set()

        world.on_save = take_down
        await life.controller.submit(world.request(2, 1))
        await down.wait()
        await asyncio.sleep(15 if "away" in what else 0.1)
        part.restart()
        status = await _settle(life, "release-2")
        _check(world, life, status, 2)
        return status

    status = with_champion(world, work)
    lost_the_canary = "triton" in what and moment in ("smoke", "baseline", "step")
    assert (status.outcome, status.restarts) == ("promoted", int(lost_the_canary)), status.reasons


@pytest.mark.parametrize("during", ["rest", "step"])
def test_a_champion_whose_process_dies_is_loaded_again(world, during):
    async def work(life):
        if during == "step":
            await life.controller.submit(world.request(2, 1))
            await life.until(lambda: 0.1 in world.weights)
        world.dead_stubs.add(world.name(1))
        await life.until(lambda: not life.controller.target(TARGET).healthy, 30)
        await life.until(lambda: life.controller.target(TARGET).healthy, 30)
        return world.dead_stubs

    assert with_champion(world, work) == set()


def test_a_warm_release_that_does_not_load_does_not_keep_the_champion_from_its_repair(world):
    async def work(life):
        await life.release(world.request(2, 1, policy=QUICK))
        world.unloadable.add(world.name(1))
        world.triton.loaded.discard(world.name(1))
        world.dead_stubs.add(world.name(2))
        await life.until(lambda: not life.controller.target(TARGET).healthy, 30)
        await life.until(lambda: life.controller.target(TARGET).healthy, 30)
        world.unloadable.clear()
        await life.until(lambda: world.name(1) in world.triton.loaded, 120)
        return world.dead_stubs

    assert with_champion(world, work) == set()


def test_after_a_restart_of_triton_the_champion_is_loaded_before_the_warm_release(world):
    async def work(life):
        await life.release(world.request(2, 1, policy=QUICK))
        world.triton.load_seconds = 20.0
        world.triton.restart()
        world.triton.begun.clear()
        await life.until(lambda: len(world.triton.loaded) == 2, 100)
        return world.triton.begun

    (first, _), (second, beside) = with_champion(world, work)
    assert (first, second) == (world.name(2), world.name(1)) and world.name(2) in beside


@pytest.mark.parametrize("left", [b"", b'{"rollout": "relea'])
def test_an_analysis_log_that_a_crash_left_without_a_line_costs_nothing(world, left):
    async def work():
        async with Clients(world):
            async with Life(world) as life:
                await life.release(world.request(1))
                await life.controller.submit(world.request(2, 1, policy=QUICK))
                await life.until(lambda: 0.5 in world.weights)
            (world.folder / "canary" / "rollouts" / "release-2.looks.jsonl").write_bytes(left)
            async with Life(world) as life:
                return await _settle(life, "release-2")

    status = run_virtually(work())
    assert (status.outcome, status.restarts) == ("promoted", 1), status.reasons


def test_a_rollout_refused_after_it_was_loaded_goes_back(world):
    async def work():
        async with Clients(world):
            async with Life(world) as life:
                await life.release(world.request(1))
                await life.controller.submit(world.request(2, 1))
                await life.until(lambda: 0.1 in world.weights)
            world.triton.up = False
            async with Life(world) as life:
                await life.until(lambda: life.controller.rollout("release-2").outcome is not None)
                world.triton.restart()
                status = await _settle(life, "release-2")
                _check(world, life, status, 2)
                return status

    status = run_virtually(work())
    assert status.outcome == "rolled_back"
    assert "Triton does not answer, for 30 s" in status.reasons[0]


def test_a_damaged_rollout_is_set_aside_and_a_damaged_target_ends_the_start(world, capsys):
    rollouts = world.folder / "canary" / "rollouts"

    async def work():
        async with Life(world) as life:
            await life.release(world.request(1))
        (rollouts / "odd.json").write_text('{"request": null}')
        async with Life(world) as life:
            return life.controller.target(TARGET).champion.name

    assert run_virtually(work()) == world.name(1)
    assert sorted(path.name for path in rollouts.glob("odd*")) == ["odd.json.damaged"]
    assert "set_aside" in capsys.readouterr().out
    (world.folder / "canary" / "targets" / f"{TARGET}.json").write_text("{}")
    with pytest.raises(DataError, match="is damaged"):
        run_virtually(Life(world).controller.start())


def test_a_router_that_lost_its_routes_gets_them_again(world):
    async def work():
        async with Life(world) as life:
            await life.release(world.request(1))
            world.router.routes.clear()
            await life.until(lambda: TARGET in world.router.routes, 30)
            return world.router.routes[TARGET]["champion"]

    assert run_virtually(work()) == world.name(1)


def test_a_lease_that_lapses_for_a_while_gives_the_weight_back(world):
    async def work(life):
        await life.controller.submit(world.request(2, 1))
        await life.until(lambda: 0.1 in world.weights)
        world.router.leases.clear()
        lapsed = world.router.weight(TARGET)
        await life.until(lambda: world.router.weight(TARGET) > 0, 30)
        return lapsed, await life.until_ended("release-2")

    lapsed, status = with_champion(world, work)
    assert lapsed == 0
    assert status.outcome == "promoted"


def test_an_engine_that_was_altered_meanwhile_is_not_loaded_again(world):
    async def work() -> None:
        async with Life(world) as life:
            await life.release(world.request(1))
            world.triton.restart()
            world.altered.add("1")
            await asyncio.sleep(30)
            assert world.triton.loaded == set()
            assert not life.controller.target(TARGET).healthy
            world.altered.clear()
            await life.until(lambda: life.controller.target(TARGET).healthy)

    run_virtually(work())
