"""A disk takes seconds for a flush: the event loop goes on meanwhile, and nothing is answered before it is durable."""

from __future__ import annotations

import asyncio
import os
import threading
from pathlib import Path

import pytest
from aiohttp.test_utils import TestClient, TestServer

from jobs.serving.canary.api import make_app
from jobs.serving.canary.controller import RefusedError
from jobs.serving.canary.state.records import Rollout
from tests.jobs.serving.canary.world import (
    QUICK,
    TARGET,
    Clients,
    Life,
    VirtualLoop,
    World,
    run_virtually,
    with_champion,
)


def test_no_flush_blocks_the_event_loop(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, third = world.request(1), world.request(2, 1, policy=QUICK), world.request(3, 2)
    in_thread: list[bool] = []

    def fsync(_descriptor: int) -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        in_thread.append(loop.in_thread)

    monkeypatch.setattr(os, "fsync", fsync)

    async def work() -> None:
        async with Clients(world):
            async with Life(world) as life:
                await life.release(first)
                await life.release(second)
                await life.controller.submit(third)
                await life.until(lambda: 0.1 in world.weights)
            async with Life(world) as life:
                await life.controller.abort("release-3", "no")
                await life.until_ended("release-3")
                await life.release(world.rollback("back"))
                await life.controller.retire(TARGET)

    run_virtually(work())
    assert len(in_thread) > 50 and all(in_thread)


def test_the_api_answers_during_a_flush_and_a_request_once_it_is_durable(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    request, flushing, done = world.request(1), threading.Event(), threading.Event()
    fsync = os.fsync

    def slow_fsync(descriptor: int) -> None:
        flushing.set()
        assert done.wait(30), "the event loop waits for the disk"
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", slow_fsync)

    async def work() -> None:
        async with Life(world) as life, TestClient(TestServer(make_app(life.controller, "secret"))) as client:
            headers = {"Authorization": "Bearer secret"}
            body = request.model_dump(mode="json")
            asked = asyncio.create_task(client.post("/rollouts", json=body, headers=headers))
            await asyncio.to_thread(flushing.wait, 30)
            async with client.get("/health") as response:
                assert response.status == 200
            async with client.get("/rollouts/release-1", headers=headers) as response:
                assert response.status == 404, "it is not durable yet"
            assert not asked.done() and not world.rollouts()
            done.set()
            assert (await asked).status == 201
            assert [one.id for one in world.rollouts()] == ["release-1"]

    asyncio.run(work())


def _abort_while(world: World, writing: str, changes: dict[str, object]) -> tuple[str | None, Rollout]:
    """Abort a release while a slow disk writes that its record changes so; return the refusal, and how it ended."""

    async def work(life: Life) -> tuple[str | None, Rollout]:
        begun, save = asyncio.Event(), life.records.save_rollout

        async def slow_save(rollout: Rollout) -> None:
            status = rollout.status
            if rollout.id == "release-2" and all(getattr(status, key) == value for key, value in changes.items()):
                begun.set()
                await asyncio.sleep(3)
            await save(rollout)

        life.records.save_rollout = slow_save  # type: ignore[method-assign]
        await life.controller.submit(world.request(2, 1, policy=QUICK))
        await begun.wait()
        refusal = None
        try:
            await life.controller.abort("release-2", writing)
        except RefusedError as error:
            refusal = str(error)
        status = await life.until_ended("release-2")
        assert status is not None
        return refusal, next(one for one in world.rollouts() if one.id == "release-2")

    return with_champion(world, work)


def test_an_abort_while_the_promotion_is_being_written_is_refused(world: World) -> None:
    refusal, rollout = _abort_while(world, "too late", {"outcome": "promoted", "state": "promoted"})
    assert refusal == "rollout release-2 is promoted already: ask for a rollback"
    assert (rollout.status.outcome, rollout.stop) == ("promoted", None)


def test_an_abort_while_a_step_is_being_written_loses_neither(world: World) -> None:
    refusal, rollout = _abort_while(world, "no", {"state": "step", "weight": 0.5})
    assert refusal is None
    assert (rollout.status.outcome, rollout.status.reasons) == ("rolled_back", ("aborted: no",))
    assert "step 1 of 1: 0.5 of the traffic" in [note.message for note in rollout.status.notes]


def test_an_abort_that_is_being_written_at_the_verdict_holds(world: World) -> None:
    async def work(life: Life) -> tuple[Rollout, ...]:
        save = life.records.save_rollout

        async def slow_save(rollout: Rollout) -> None:
            if rollout.stop is not None and rollout.status.outcome is None:
                await asyncio.sleep(60)
            await save(rollout)

        life.records.save_rollout = slow_save  # type: ignore[method-assign]
        await life.controller.submit(world.request(2, 1, policy=QUICK))
        runner = life.controller._running("release-2")
        assert runner is not None
        await life.until(lambda: (runner.status.figures.get("canary_requests", 0)) > 0)
        await life.controller.abort("release-2", "no")
        await life.until_ended("release-2")
        return tuple(world.rollouts())

    rollout = with_champion(world, work)[-1]
    assert (rollout.status.outcome, rollout.status.reasons) == ("rolled_back", ("aborted: no",))


def test_a_request_that_is_given_up_during_a_flush_is_whole_or_not_there(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    request, flushing, done = world.request(1), threading.Event(), threading.Event()

    def slow_fsync(_descriptor: int) -> None:
        flushing.set()
        assert done.wait(30)

    monkeypatch.setattr(os, "fsync", slow_fsync)

    async def work() -> None:
        async with Life(world) as life:
            asked = asyncio.create_task(life.controller.submit(request))
            await asyncio.to_thread(flushing.wait, 30)
            asked.cancel()
            asyncio.get_running_loop().call_later(0.05, done.set)
            with pytest.raises(asyncio.CancelledError):
                await asked
            assert [one.id for one in world.rollouts()] == ["release-1"]
            assert life.controller.rollout("release-1").id == "release-1"

    asyncio.run(work())


def test_a_target_that_waits_for_a_disk_to_be_retired_keeps_no_other_waiting(world: World) -> None:
    other = world.release(9).model_copy(update={"model": "other"})
    request = world.request(9, target="other", release=other)

    async def work(life: Life) -> None:
        begun, written, save = asyncio.Event(), asyncio.Event(), life.records.save_rollout

        async def slow_save(rollout: Rollout) -> None:
            if rollout.id == "release-2" and rollout.status.state == "step":
                begun.set()
                await written.wait()
            await save(rollout)

        life.records.save_rollout = slow_save  # type: ignore[method-assign]
        await life.controller.submit(world.request(2, 1, policy=QUICK))
        await begun.wait()
        retired = asyncio.create_task(life.controller.retire(TARGET))
        await asyncio.sleep(1)
        status, is_new = await asyncio.wait_for(life.controller.submit(request), 1)
        assert (status.target, is_new, retired.done()) == ("other", True, False)
        written.set()
        assert await retired

    with_champion(world, work)


def test_an_analysis_log_is_read_once_however_long_it_gets(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []
    read_bytes = Path.read_bytes

    def counted(path: Path) -> bytes:
        if path.name.endswith(".looks.jsonl"):
            read.append(path)
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", counted)

    async def work(life: Life) -> None:
        await life.controller.submit(world.request(2, 1))
        await life.until(lambda: life.controller.rollout("release-2").outcome is not None)

    with_champion(world, work)
    path = world.folder / "canary" / "rollouts" / "release-2.looks.jsonl"
    assert path.read_text().count("\n") > 5
    # When the steps begin, before the first analysis run, and for the evidence; then by this test itself.
    assert len(read) <= 3
