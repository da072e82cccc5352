"""Rollouts on two tiers whose pods come and go, in virtual time: what one pod does must not decide for the others."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.jobs.serving.canary.world import QUICK, TARGET, Clients, FakePod, Life, World, run_virtually, with_champion


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path, stable=2, canary=1)


async def promote(life: Life, number: int, former: int, **changes: Any) -> None:
    status = await life.release(life.world.request(number, former, policy=QUICK, **changes))
    assert status.outcome == "promoted", status.reasons


@pytest.mark.parametrize("away", ["scaled to 0", "silent"])
def test_a_rollback_needs_the_stable_tier_alone(world: World, away: str) -> None:
    async def work(life: Life) -> Any:
        await promote(life, 2, 1)
        pods = list(world.canary)
        pods[0].triton.loaded.add("left-over")
        await life.until(lambda: not pods[0].triton.loaded)
        if away == "silent":
            pods[0].up = False
        else:
            world.canary.clear()
        pods[0].triton.loaded.add("left-over")
        began = asyncio.get_running_loop().time()
        back = await life.release(world.rollback("back"))
        took = asyncio.get_running_loop().time() - began
        world.canary[:] = pods
        pods[0].up = True
        await life.until(lambda: not pods[0].triton.loaded, 30)
        return back, took

    back, took = with_champion(world, work)
    assert (back.outcome, back.champion.name) == ("promoted", world.name(1)), back.reasons
    assert took < 5
    assert world.lost == 0


def test_a_rollback_reads_an_engine_that_is_cold_again_and_proves_it(world: World) -> None:
    async def work(life: Life) -> Any:
        await promote(life, 2, 1)
        for pod in world.stable:
            pod.triton.loaded.discard(world.name(1))
        world.unloadable.add(world.name(1))
        refused = await life.release(world.rollback("no", 1))
        world.unloadable.clear()
        world.garbled.add(world.name(1))
        garbled = await life.release(world.rollback("words", 1))
        world.garbled.clear()
        return refused, garbled, await life.release(world.rollback("back", 1))

    refused, garbled, back = with_champion(world, work)
    assert refused.outcome == "rolled_back" and "avx512_vnni" in refused.reasons[0]
    assert garbled.outcome == "rolled_back" and "0 of 4 golden prompts" in garbled.reasons[0]
    assert back.outcome == "promoted"
    assert world.lost == 0


def test_a_release_that_loads_slowly_on_one_stable_pod_is_promoted(world: World) -> None:
    async def work(life: Life) -> Any:
        world.stable[1].triton.load_seconds = 150.0  # `Timing.outage` is 30 s
        await promote(life, 2, 1)

    with_champion(world, work)
    assert all(world.name(2) in pod.triton.loaded for pod in world.stable)
    assert world.lost == 0


def test_a_stable_pod_that_is_silent_keeps_no_release_from_being_promoted(world: World) -> None:
    async def work(life: Life) -> Any:
        world.stable[1].up = False
        status = await life.release(world.request(2, 1, policy=QUICK))
        world.stable[1].up = True
        world.stable[1].triton.restart()
        await life.until(lambda: world.name(2) in world.stable[1].triton.loaded, 30)
        return status

    status = with_champion(world, work)
    assert status.outcome == "promoted", status.reasons
    assert any("stable1" in note.message for note in status.notes), "a note names the pod that it was promoted without"
    assert world.lost == 0


def test_a_stable_pod_that_refuses_keeps_a_release_from_being_promoted_and_is_named(world: World) -> None:
    async def work(life: Life) -> Any:
        world.stable[1].refuses = "no space left on device"
        return await life.release(world.request(2, 1, policy=QUICK))

    status = with_champion(world, work)
    assert status.outcome == "rolled_back"
    assert "stable1: no space left on device" in status.reasons[0]
    assert world.lost == 0


def test_a_stable_pod_that_cannot_say_what_it_has_stops_a_release_but_no_rollback(world: World) -> None:
    async def work(life: Life) -> Any:
        await promote(life, 2, 1)
        world.stable[1].trouble = "the repository cannot be read: input/output error"
        third = await life.release(world.request(3, 2, policy=QUICK))
        return third, await life.release(world.rollback("back"))

    third, back = with_champion(world, work)
    assert third.outcome == "rolled_back" and "stable1: the repository cannot be read" in third.reasons[0]
    assert back.outcome == "promoted" and back.champion.name == world.name(1)


def test_a_stable_tier_that_is_away_is_not_the_releases_fault(world: World) -> None:
    """At the moment of the take-over every stable pod is restarted, and unreachable for longer than `Timing.outage`."""

    async def work(life: Life) -> Any:
        await life.controller.submit(world.request(2, 1, policy=QUICK))
        await life.until(lambda: "on the stable tier" in _last_note(life, "release-2"))
        for pod in world.stable:
            pod.triton.up = False
        await asyncio.sleep(50)
        for pod in world.stable:
            pod.triton.restart()
        return await life.until_ended("release-2")

    status = with_champion(world, work)
    assert (status.outcome, status.restarts) == ("promoted", 1), status.reasons


def test_a_canary_pod_that_is_replaced_while_it_is_given_a_release_is_not_the_releases_fault(world: World) -> None:
    async def work(life: Life) -> Any:
        old = world.canary[0]
        old.triton.load_seconds = 5.0
        await life.controller.submit(world.request(2, 1, policy=QUICK))
        await life.until(lambda: old.installed())
        old.up = False
        world.canary[:] = [FakePod(world, "canary-new")]
        return await life.until_ended("release-2")

    status = with_champion(world, work)
    assert status.outcome == "promoted", status.reasons
    assert world.lost == 0


def test_a_canary_pod_that_joins_under_traffic_is_given_the_canary(tmp_path: Path) -> None:
    world = World(tmp_path, stable=1, canary=1)

    async def work(life: Life) -> Any:
        await life.controller.submit(world.request(2, 1))
        await life.until(lambda: 0.1 in world.weights)
        world.canary.append(FakePod(world, "canary-new"))
        await life.until(lambda: world.canary[1].ready and world.name(2) in world.canary[1].triton.loaded, 30)
        return await life.until_ended("release-2")

    status = with_champion(world, work)
    assert (status.outcome, status.restarts) == ("promoted", 0), status.reasons


@pytest.mark.parametrize("absent", ["stable", "canary"])
def test_a_tier_that_is_unreachable_does_not_keep_the_other_from_being_resynced(world: World, absent: str) -> None:
    async def work(life: Life) -> None:
        away, there = (world.stable, world.canary) if absent == "stable" else (world.canary, world.stable)
        for pod in away:
            pod.up = False
        there[0].triton.loaded.add("left-over")
        there[0].required = None
        await life.until(lambda: "left-over" not in there[0].triton.loaded and there[0].required is not None, 30)

    with_champion(world, work)


def test_one_release_that_does_not_unload_keeps_no_other_from_being_collected(world: World) -> None:
    async def work(life: Life) -> None:
        world.stuck.add("a-stuck")
        world.canary[0].triton.loaded |= {"a-stuck", "left-over"}
        await life.until(lambda: world.canary[0].triton.loaded == {"a-stuck"}, 30)

    with_champion(world, work)


@pytest.mark.parametrize("other", ["refuses", "silent"])
def test_a_new_stable_pod_is_given_the_champion_whatever_another_does(world: World, other: str) -> None:
    async def work(life: Life) -> Any:
        if other == "refuses":
            world.stable[1].triton.restart()
            world.stable[1].refuses = "no space left on device"
        else:
            world.stable[1].up = False
        read = list(world.stable[0].installs)
        new = FakePod(world, "stable-new")
        world.stable.append(new)
        await life.until(lambda: new.ready and world.name(1) in new.triton.loaded, 30)
        await asyncio.sleep(60)
        return read, life.controller.target(TARGET).healthy

    read, healthy = with_champion(world, work)
    assert world.stable[0].installs == read, "who has it is not made to read it again"
    assert healthy, "others answer"
    assert len(world.stable[1].installs) < 12, "who refuses is not asked every two seconds"
    assert world.lost == 0


def test_a_new_pod_that_reads_a_large_engine_keeps_nothing_else_waiting(world: World) -> None:
    async def work(life: Life) -> Any:
        await life.controller.submit(world.request(2, 1))
        await life.until(lambda: 0.1 in world.weights)
        slow, new = FakePod(world, "stable-slow"), FakePod(world, "stable-new")
        slow.install_seconds = 600.0
        world.stable.append(slow)
        await asyncio.sleep(5)
        world.stable.append(new)
        world.canary[0].triton.restart()
        await life.until(lambda: life.controller.rollout("release-2").restarts == 1, 10)
        await life.until(lambda: new.required is not None, 10)
        began = asyncio.get_running_loop().time()
        back = await life.release(world.rollback("back", 1))
        return back, asyncio.get_running_loop().time() - began

    back, took = with_champion(world, work)
    assert back.outcome == "promoted" and took < 10
    assert world.lost == 0


def test_what_the_router_still_leads_to_is_not_unloaded(world: World) -> None:
    """A controller dies after the promotion, the router is away, and the former champion is not to be kept warm."""

    async def work() -> None:
        async with Clients(world):
            async with Life(world) as life:
                await life.release(world.request(1))
                policy = QUICK.model_copy(update={"warm_seconds": 1e-6})
                await life.controller.submit(world.request(2, 1, policy=policy))
                await life.until(lambda: "on the stable tier" in _last_note(life, "release-2"))
                world.router.writing = False
                await life.until(lambda: life.controller.rollout("release-2").state == "promoted")
            async with Life(world):
                await asyncio.sleep(20)
            assert world.router.routes[TARGET]["champion"] == world.name(1)
            assert all(world.name(1) in pod.triton.loaded for pod in world.stable)
            world.router.writing = True
            async with Life(world) as life:
                await life.until_ended("release-2")
                await life.until(lambda: all(pod.triton.loaded == {world.name(2)} for pod in world.stable), 60)

    run_virtually(work())
    assert world.lost == 0


def test_a_champion_that_no_pod_can_load_does_not_take_the_pods_from_the_others(world: World) -> None:
    request = world.request(9)
    release = request.release.model_copy(update={"model": "other"})
    other = request.model_copy(update={"target": "other", "id": "other-9", "release": release})

    async def work(life: Life) -> None:
        await life.release(other)
        name = life.controller.target("other").champion.name
        world.unloadable.add(name)
        for pod in world.stable:
            pod.triton.loaded.discard(name)
        await asyncio.sleep(30)
        assert all(pod.ready for pod in world.stable)
        world.unloadable.clear()
        await life.until(lambda: all(pod.required == {name, world.name(1)} and pod.ready for pod in world.stable), 120)

    with_champion(world, work)


def test_after_a_restart_each_pod_has_the_champion_before_the_warm_release(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    async def work(life: Life) -> None:
        await promote(life, 2, 1)
        capsys.readouterr()
        for pod in world.stable:
            pod.triton.restart()
            pod.triton.begun.clear()
            pod.triton.load_seconds = 20.0
        await life.until(lambda: all(pod.triton.loaded == {world.name(1), world.name(2)} for pod in world.stable), 200)

    with_champion(world, work)
    for pod in world.stable:
        (first, _), (second, beside) = pod.triton.begun
        assert (first, second) == (world.name(2), world.name(1)) and world.name(2) in beside
    events = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert events.count("repair") == 1 and "repair_failed" not in events, "that an engine is being read is no failure"


def test_a_release_waits_no_longer_than_an_outage_may_last_for_a_pod_whose_node_is_lost_meanwhile(
    world: World,
) -> None:
    async def work(life: Life) -> Any:
        await life.controller.submit(world.request(2, 1, policy=QUICK))
        world.stable[1].install_seconds = 3600.0
        await life.until(lambda: world.name(2) in world.stable[1].installs)
        world.stable[1].up = False
        began = asyncio.get_running_loop().time()
        return await life.until_ended("release-2"), asyncio.get_running_loop().time() - began

    status, took = with_champion(world, work)
    assert status.outcome == "promoted", status.reasons
    assert took < 90  # `Timing.outage` is 30 s, before it is given up and before it is gone on without


@pytest.mark.parametrize("fault", ["refuses", "reads for an hour", "node is lost"])
def test_a_rollback_needs_one_stable_pod_and_the_others_are_not_ready(world: World, fault: str) -> None:
    async def work(life: Life) -> Any:
        await promote(life, 2, 1)
        bad = world.stable[1]
        for pod in world.stable:
            pod.triton.loaded.discard(world.name(1))
        bad.refuses = "no space left on device" if fault == "refuses" else None
        bad.install_seconds = 0.0 if fault == "refuses" else 3600.0
        began = asyncio.get_running_loop().time()
        await life.controller.submit(world.rollback("back"))
        if fault == "node is lost":
            await life.until(lambda: bad.installs.count(world.name(1)) > 1)
            bad.up = False
        back = await life.until_ended("back")
        return back, asyncio.get_running_loop().time() - began, bad.ready

    back, took, ready = with_champion(world, work)
    assert (back.outcome, back.champion.name) == ("promoted", world.name(1)), back.reasons
    assert took < 60 and not ready
    assert world.lost == 0


def test_a_rollback_bears_a_refusal_that_passes(world: World) -> None:
    async def work(life: Life) -> Any:
        await promote(life, 2, 1)
        for pod in world.stable:
            pod.triton.loaded.discard(world.name(1))
            pod.refuses = "the store does not answer"
        await life.controller.submit(world.rollback("back"))
        await asyncio.sleep(10)
        for pod in world.stable:
            pod.refuses = None
        return await life.until_ended("back")

    assert with_champion(world, work).outcome == "promoted"
    assert world.lost == 0


def test_a_canary_has_no_traffic_while_the_stable_tier_takes_the_release_over(world: World) -> None:
    async def work(life: Life) -> float:
        world.stable[1].triton.load_seconds = 100.0
        await life.controller.submit(world.request(2, 1, policy=QUICK))
        await life.until(lambda: "on the stable tier" in _last_note(life, "release-2"))
        weight = world.router.weight(TARGET)
        world.failing[world.name(2)] = 1.0
        lost = world.lost
        await asyncio.sleep(60)
        assert world.lost == lost
        return weight

    assert with_champion(world, work) == 0


@pytest.mark.parametrize("router", ["there", "away"])
def test_without_records_a_new_pod_is_not_ready_before_it_has_what_the_router_leads_to(
    world: World, router: str
) -> None:
    async def work() -> None:
        async with Clients(world):
            async with Life(world) as life:
                await life.release(world.request(1))
            shutil.rmtree(world.folder / "canary")
            new = FakePod(world, "stable-new")
            world.stable.append(new)
            world.router.up = router == "there"
            async with Life(world):
                await asyncio.sleep(20)
            assert new.required == ({world.name(1)} if router == "there" else None)
            assert not new.ready and world.stable[0].ready

    run_virtually(work())
    assert world.lost == 0


def test_what_the_router_can_never_lead_is_refused_before_it_is_loaded(world: World) -> None:
    async def work(life: Life) -> Any:
        world.router.refusal = "the route serves another target: give this one a route of its own"
        return await life.release(world.request(2, 1))

    status = with_champion(world, work)
    assert (status.outcome, status.reasons) == ("refused", (world.router.refusal,))
    assert world.canary[0].installs == [world.name(1)]


def test_a_release_that_does_not_unload_holds_no_rollback_up(world: World) -> None:
    async def work(life: Life) -> Any:
        await promote(life, 2, 1)
        world.hanging.add("a-stuck")
        world.stable[0].triton.loaded.add("a-stuck")
        await asyncio.sleep(5)
        began = asyncio.get_running_loop().time()
        back = await life.release(world.rollback("back"))
        return back, asyncio.get_running_loop().time() - began

    back, took = with_champion(world, work)
    assert back.outcome == "promoted" and took < 5


def test_while_a_pod_loads_its_champion_again_the_route_is_kept(world: World) -> None:
    async def work(life: Life) -> None:
        for pod in world.stable:
            pod.triton.load_seconds = 600.0
        world.dead_stubs.add(world.name(1))
        await life.until(lambda: len(world.stable[0].triton.begun) > 1, 60)
        world.router.routes.clear()
        await life.until(lambda: TARGET in world.router.routes, 10)

    with_champion(world, work)


def _last_note(life: Life, rollout: str) -> str:
    notes = life.controller.rollout(rollout).notes
    return notes[-1].message if notes else ""
