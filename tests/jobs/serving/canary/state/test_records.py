"""What the controller says that it needs, whether it runs or not, and what it forgets in the end."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from include.release.rollouts import ControllerState, Note, RolloutStatus
from jobs.serving.canary.controller import HISTORY
from jobs.serving.canary.state.records import Records, Rollout
from tests.jobs.serving.canary.world import TARGET, Life, World, run_virtually


def test_what_is_needed_is_the_same_from_the_controller_and_from_its_records(tmp_path: Path) -> None:
    world = World(tmp_path)

    async def work() -> ControllerState:
        async with Life(world) as life:
            await life.release(world.request(1))
            await life.controller.submit(world.request(2, 1))
            return life.controller.state()

    running = run_virtually(work())
    kept = Records(tmp_path / "canary").state()
    assert kept.unfinished == running.unfinished == (world.request(2, 1),)
    assert [target.champion.release for target in kept.targets] == [world.release(1)]
    assert [target.champion for target in running.targets] == [target.champion for target in kept.targets]


@pytest.mark.parametrize(
    ("age", "evidence", "state", "forgotten"),
    [
        (HISTORY + timedelta(days=1), "file:///store/canary-1", "finished", True),
        (HISTORY - timedelta(days=1), "file:///store/canary-1", "finished", False),
        (HISTORY + timedelta(days=1), None, "finished", False),
    ],
    ids=["old", "young", "without evidence"],
)
def test_an_old_rollout_is_forgotten_once_its_evidence_is_kept(
    age: timedelta, evidence: str | None, state: str, forgotten: bool, tmp_path: Path
) -> None:
    world = World(tmp_path)
    then = datetime.now(UTC) - age
    note = Note(time=then, state=state, message="it ended")
    status = RolloutStatus(
        id="release-1", kind="release", target=TARGET, state=state, outcome="promoted", evidence=evidence, notes=(note,)
    )
    records = Records(tmp_path / "canary")
    asyncio.run(records.save_rollout(Rollout(request=world.request(1), status=status, sequence=1, asked=then)))
    records.close()
    world.store_up = False

    async def work() -> None:
        async with Life(world) as life:
            await life.until(lambda: not life.controller._rollouts or life.world.router.now() > 10)

    run_virtually(work())
    assert ([one.id for one in world.rollouts()] == []) is forgotten
