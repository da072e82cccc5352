"""State and evidence that version 0.1 left are read, and a rollout that it had begun goes on.

`state-0.1` is what a controller of version 0.1 left in its folder when it died at the first step of `release-2`, with
FOLDER in place of the folder's path.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from include.artifacts.store import Store
from include.release.rollouts import RolloutStatus
from jobs.serving.canary.analysis.runs import read
from tests.jobs.serving.canary.world import Clients, Life, World, run_virtually

STATE = Path(__file__).with_name("state-0.1")


@pytest.fixture
def world(tmp_path: Path) -> World:
    for path in STATE.rglob("*.json*"):
        copy = tmp_path / "canary" / path.relative_to(STATE)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(path.read_text().replace("FOLDER", str(tmp_path)))
    world = World(tmp_path)
    world.slow.update({world.name(1): 0.0, world.name(2): 0.0})
    world.install(tmp_path, world.release(1), "none")
    world.router.restart()  # or its boot would be the one in the state
    return world


def test_a_rollout_that_an_earlier_version_began_goes_on_with_its_evidence(world: World) -> None:
    async def work() -> RolloutStatus | None:
        async with Life(world) as life, Clients(world):
            return await life.until_ended("release-2")

    status = run_virtually(work())
    assert (status.outcome, status.restarts) == ("promoted", 1), status.reasons
    store, name = Store.of(status.evidence)
    before = (STATE / "rollouts" / "release-2.looks.jsonl").read_bytes()
    data = store.read_bytes(name, "looks.jsonl")
    assert data.startswith(before)
    _, runs = read(data, "log")
    assert [run.attempt for run in runs[:3]] == [0, 0, 1]
    carried = [part for part in runs[-1].evidence.generations if not part.current]
    assert [part.canary.finished for part in carried] == [57], "its counts still speak for a rollback"


def test_evidence_of_an_earlier_version_is_decided_alike(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "jobs.canary", "replay", str(STATE / "rollouts" / "release-2.looks.jsonl")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("2 analysis runs of release-2: every decision the same\n")
