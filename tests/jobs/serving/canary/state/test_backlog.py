"""A store that is away at the end of a rollout costs no evidence: it is kept with the records and stored later."""

from __future__ import annotations

import asyncio
import json
from datetime import timedelta
from typing import Any

import pytest

from include.artifacts.store import Store
from include.release.rollouts import RolloutStatus
from jobs.serving.canary import controller
from jobs.serving.canary.analysis.runs import read
from jobs.serving.canary.controller import RefusedError
from jobs.serving.canary.state import evidence
from jobs.serving.canary.state.records import Rollout, TargetRecord
from tests.jobs.serving.canary.state.test_upgrade import STATE
from tests.jobs.serving.canary.world import QUICK, TARGET, Clients, Life, World, run_virtually


async def _end_without_store(life: Life) -> RolloutStatus:
    """Release version 1, then version 2 while the store is away from its last step on; return the second's status."""
    await life.release(life.world.request(1))
    await life.controller.submit(life.world.request(2, 1, policy=QUICK))
    await life.until(lambda: 0.5 in life.world.weights)
    life.world.store_up = False
    status = await life.until_ended("release-2")
    assert status is not None
    return status


async def _until_stored(life: Life, rollout: str = "release-2") -> RolloutStatus:
    await life.until(lambda: life.controller.rollout(rollout).evidence, 60)
    return life.controller.rollout(rollout)


def _stored(status: RolloutStatus) -> RolloutStatus:
    """Return the status in the evidence, after a look at the analysis runs beside it."""
    assert status.evidence is not None and status.evidence_pending is None
    store, name = Store.of(status.evidence)
    _, runs = read(store.read_bytes(name, "looks.jsonl"), "log")
    assert runs[-1].action == "promote"
    return RolloutStatus.model_validate_json(store.read_bytes(name, "status.json"))


def test_the_rollout_ends_and_says_where_its_evidence_will_be(world: World) -> None:
    async def work() -> tuple[RolloutStatus, RolloutStatus]:
        async with Life(world) as life, Clients(world):
            ended = await _end_without_store(life)
            await asyncio.sleep(600)
            assert life.controller.rollout("release-2") == ended
            world.store_up = True
            return ended, await _until_stored(life)

    ended, stored = run_virtually(work())
    assert (ended.outcome, ended.evidence, ended.evidence_pending) == ("promoted", None, stored.evidence)
    last = ended.notes[-1].message
    assert last.startswith(f"finished: promoted; its evidence is kept in {world.folder}/canary/rollouts and stored at ")
    assert last.endswith(f"{stored.evidence} as soon as possible (the store does not answer)")
    assert _stored(stored) == stored == world.rollouts()[-1].status
    assert stored.notes == ended.notes


def test_it_outlives_the_controller(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    async def work() -> RolloutStatus:
        async with Clients(world):
            async with Life(world) as life:
                await _end_without_store(life)
            async with Life(world) as life:
                await asyncio.sleep(60)
                assert life.controller.rollout("release-2").evidence is None
            world.store_up = True
            async with Life(world) as life:
                return await _until_stored(life)

    assert _stored(run_virtually(work())).outcome == "promoted"
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("evidence_")]
    tries_at_the_end, next_controller = ["evidence_pending"] * 3, ["evidence_pending"]
    assert [line.split()[0] for line in told] == [*tries_at_the_end, *next_controller, "evidence_stored"]


def test_what_a_controller_gave_up_before_is_stored(world: World) -> None:
    """A controller before this one ended a rollout without its evidence, and left it at that."""
    path = world.folder / "canary" / "rollouts" / "release-1.json"
    path.parent.mkdir(parents=True)
    record = json.loads((STATE / "rollouts" / "release-1.json").read_text().replace("FOLDER", str(world.folder)))
    record["status"]["evidence"] = None
    path.write_text(json.dumps(record))
    world.release(1)

    async def work() -> RolloutStatus:
        async with Life(world) as life:
            return await _until_stored(life, "release-1")

    status = run_virtually(work())
    store, name = Store.of(status.evidence or "")
    manifest = store.manifest(name)
    assert manifest is not None and manifest.metrics["outcome"] == "promoted"
    assert manifest.provenance.finished == status.notes[-1].time, "not when it was stored"


@pytest.mark.parametrize("dies", [False, True])
def test_a_target_that_is_retired_meanwhile_costs_no_evidence(world: World, dies: bool) -> None:
    uri = ""

    async def go_on(life: Life) -> None:
        await asyncio.sleep(30)
        assert [one.id for one in world.rollouts()] == ["release-2"]
        assert life.controller.state().targets == ()
        with pytest.raises(RefusedError, match="evidence is still to be stored"):
            await life.controller.submit(world.request(2, 1, policy=QUICK))
        world.store_up = True
        await life.until(lambda: not world.rollouts(), 60)

    async def work() -> None:
        nonlocal uri
        async with Clients(world):
            async with Life(world) as life:
                uri = (await _end_without_store(life)).evidence_pending or ""
                await life.controller.retire(TARGET)
                if not dies:
                    await go_on(life)
            if dies:
                async with Life(world) as life:
                    await go_on(life)

    run_virtually(work())
    store, name = Store.of(uri)
    status = RolloutStatus.model_validate_json(store.read_bytes(name, "status.json"))
    assert (status.outcome, status.evidence) == ("promoted", uri)
    assert list((world.folder / "canary" / "rollouts").iterdir()) == []


@pytest.mark.parametrize("moment", ["while the store is tried", "when it is finished on the disk"])
def test_a_target_that_is_retired_at_the_end_of_a_rollout_costs_no_evidence(world: World, moment: str) -> None:
    async def ends(life: Life) -> None:
        runner = life.controller._running("release-2")
        assert runner is not None
        if moment == "while the store is tried":
            await life.until(lambda: runner.status.notes[-1].message.endswith("takes all of the traffic"))
            return
        finished, save = asyncio.Event(), life.records.save_rollout

        async def slow_save(rollout: Rollout) -> None:
            await save(rollout)
            if rollout.status.ended:
                finished.set()
                await asyncio.sleep(3)

        life.records.save_rollout = slow_save  # type: ignore[method-assign]
        await finished.wait()
        assert not runner.status.ended

    async def work() -> None:
        async with Life(world) as life, Clients(world):
            await life.release(world.request(1))
            await life.controller.submit(world.request(2, 1, policy=QUICK))
            await life.until(lambda: 0.5 in world.weights)
            world.store_up = False
            await ends(life)
            await life.controller.retire(TARGET)
            assert [(one.id, one.retired) for one in world.rollouts()] == [("release-2", True)]
            world.store_up = True
            await life.until(lambda: not world.rollouts(), 60)

    run_virtually(work())
    uri = evidence.evidence_uri(world.store.root, "release-2")
    status = RolloutStatus.model_validate_json(world.store.read_bytes(Store.of(uri)[1], "status.json"))
    assert _stored(status).outcome == "promoted"
    assert list((world.folder / "canary" / "rollouts").iterdir()) == []


def test_a_target_that_is_retired_while_old_rollouts_are_forgotten_goes_as_well(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work() -> None:
        async with Life(world) as life:
            await life.release(world.request(1))
            forget, forgetting = life.records.forget_rollout, asyncio.Event()

            async def slow_forget(rollout: str) -> None:
                # The retirement's own, if there is one, ends after the other.
                seconds = 20 if forgetting.is_set() else 10
                forgetting.set()
                await asyncio.sleep(seconds)
                await forget(rollout)

            life.records.forget_rollout = slow_forget  # type: ignore[method-assign]
            monkeypatch.setattr(controller, "HISTORY", timedelta(0))
            await forgetting.wait()
            assert await life.controller.retire(TARGET)
            assert (world.rollouts(), life.controller.state().targets) == ([], ())

    run_virtually(work())


@pytest.mark.parametrize("write", ["forget_rollout", "forget_target"])
def test_a_retirement_that_a_disk_interrupts_goes_on(
    world: World, write: str, capsys: pytest.CaptureFixture[str]
) -> None:
    async def work() -> None:
        async with Life(world) as life, Clients(world):
            await life.release(world.request(1))
            await life.controller.submit(world.request(2, 1))
            await life.until(lambda: 0.1 in world.weights)
            done, tries = getattr(life.records, write), 0

            async def fail_twice(name: str) -> None:
                nonlocal tries
                tries += 1
                if tries < 3:
                    raise OSError("the disk is away")
                await done(name)

            setattr(life.records, write, fail_twice)
            assert await life.controller.retire(TARGET)
            assert await life.controller.retire(TARGET) is False
            assert (world.rollouts(), life.controller.state().targets, world.router.routes) == ([], (), {})
            await life.release(world.request(3))

    run_virtually(work())
    assert capsys.readouterr().out.count(f'fault target={TARGET} error="OSError: the disk is away"') == 2


def test_a_retirement_whose_caller_gives_up_can_be_asked_for_again(world: World) -> None:
    async def work() -> None:
        async with Life(world) as life:
            await life.release(world.request(1))
            save, writing = life.records.save_target, asyncio.Event()

            async def slow_save(record: TargetRecord) -> None:
                writing.set()
                await asyncio.sleep(3)
                await save(record)

            life.records.save_target = slow_save  # type: ignore[method-assign]
            asked = asyncio.create_task(life.controller.retire(TARGET))
            await writing.wait()
            asked.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asked
            assert await life.controller.retire(TARGET)
            assert (world.rollouts(), life.controller.state().targets) == ([], ())

    run_virtually(work())


def test_a_log_that_cannot_be_read_holds_up_no_other_evidence(world: World) -> None:
    async def work() -> tuple[RolloutStatus, RolloutStatus]:
        async with Life(world) as life, Clients(world):
            await _end_without_store(life)
            log = life.records.analysis_log("release-2")
            kept = log.read_bytes()
            log.unlink()
            log.mkdir()
            await life.release(world.rollback("back"))
            world.store_up = True
            back = await _until_stored(life, "back")
            assert life.controller.rollout("release-2").evidence is None
            log.rmdir()
            log.write_bytes(kept)
            return back, await _until_stored(life)

    back, forward = run_virtually(work())
    assert (back.outcome, _stored(forward).outcome) == ("promoted", "promoted")


def test_a_fault_with_one_holds_up_no_other_evidence(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    async def work() -> RolloutStatus:
        async with Life(world) as life, Clients(world):
            await _end_without_store(life)
            await life.release(world.rollback("back"))
            commit = evidence.commit

            def faulty(store: str, rollout: Rollout, *more: Any) -> None:
                if rollout.id == "release-2":
                    raise AttributeError("no such thing")
                commit(store, rollout, *more)

            evidence.commit = faulty
            world.store_up = True
            await _until_stored(life, "back")
            await asyncio.sleep(60)
            evidence.commit = commit
            return await _until_stored(life)

    assert _stored(run_virtually(work())).outcome == "promoted"
    faults = [line for line in capsys.readouterr().out.splitlines() if line.startswith("fault")]
    assert faults == ['fault rollout=release-2 error="AttributeError: no such thing"']


def test_a_controller_that_dies_at_any_action_of_a_late_store_loses_nothing(world: World) -> None:
    def left() -> list[Rollout]:
        return [one for one in world.rollouts() if one.lacks_evidence]

    async def work() -> int:
        async with Clients(world):
            async with Life(world) as life:
                await _end_without_store(life)
            world.store_up = True
            deaths = 0
            for action in range(1, 100):
                async with Life(world, dies_at=action) as life:
                    await life.until(lambda: not left(), 60)
                    deaths += life.dead
                if not left():
                    return deaths
        raise AssertionError("it was never stored")

    assert run_virtually(work()) > 1
    assert world.rollouts()[-1].status.evidence is not None
