"""Analysis runs are kept so that they can be decided again, and one that was altered is found."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator

import pytest

from include.errors import DataError
from include.release.rollouts import CanaryPolicy
from jobs.serving.canary.analysis.judge import Arm, Evidence, Generation, Golden
from jobs.serving.canary.analysis.runs import AnalysisLog, Heading, read, replay
from jobs.serving.durably import DiskThread

POLICY = CanaryPolicy(steps=(0.5,), step_seconds=10, min_requests=200)


def evidence(requests: int, failed: int = 0) -> Evidence:
    canary = Arm(finished=requests, failed=failed, sampled=requests, bad=failed)
    champion = Arm(finished=requests, sampled=requests)
    return Evidence(
        step=0,
        elapsed=requests / 10,
        step_elapsed=requests / 10,
        golden=Golden(asked=4, same=4, step_elapsed=10),
        generations=(Generation(key="b:2", step=0, weight=0.5, champion=champion, canary=canary),),
    )


@pytest.fixture
def disk() -> Iterator[DiskThread]:
    disk = DiskThread()
    yield disk
    disk.close()


@pytest.fixture
def path(tmp_path, disk):
    path = tmp_path / "looks.jsonl"
    analysis_log = AnalysisLog(path, Heading(rollout="r", policy=POLICY), disk)
    assert asyncio.run(analysis_log.last()) is None
    for requests, failed in ((50, 0), (100, 1), (200, 2), (220, 40)):
        asyncio.run(analysis_log.append(0, evidence(requests, failed)))
    return path


def replayed(path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "jobs.serving.canary", "replay", str(path)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_a_replay_decides_alike(path):
    done = replayed(path)
    assert done.returncode == 0, done.stderr
    assert "analysis run 4  step 1  22.0 s  roll_back  errors: 40 of the canary's 220" in done.stdout
    assert done.stdout.endswith("4 analysis runs of r: every decision the same\n")


@pytest.mark.parametrize(
    ("meddle", "says"),
    [
        (lambda run: run.update(action="promote"), "recorded promote"),
        (lambda run: run["evidence"]["generations"][0]["canary"].update(failed=0, bad=0), "decided promote"),
        (lambda run: run["figures"].update(canary_requests=7), "figure canary_requests: recorded 7.0, computed 220"),
        (lambda run: run["figures"].pop("bad_bound"), "figure bad_bound: recorded None"),
    ],
)
def test_a_difference_is_70_and_named(path, meddle, says):
    lines = path.read_text().splitlines()
    run = json.loads(lines[-1])
    meddle(run)
    path.write_text("\n".join([*lines[:-1], json.dumps(run)]) + "\n")
    done = replayed(path)
    assert done.returncode == 70
    assert "analysis run 4 is decided otherwise now" in done.stderr
    assert says in done.stderr


def test_a_line_that_a_crash_tore_does_not_count_and_is_taken_away(path, disk):
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"attempt": 0, "evid')
    assert asyncio.run(AnalysisLog(path, Heading(rollout="r", policy=POLICY), disk).last()).action == "roll_back"
    asyncio.run(AnalysisLog(path, Heading(rollout="r", policy=POLICY), disk).append(1, evidence(240)))
    _, runs = read(path.read_bytes(), "log")
    assert [run.attempt for run in runs] == [0, 0, 0, 0, 1]
    assert path.read_bytes().startswith(whole)


@pytest.mark.parametrize("left", [b"", b'{"rollout": "r", "pol'])
def test_a_file_without_a_whole_line_has_no_analysis_run_and_takes_the_first(path, left, disk):
    path.write_bytes(left)
    analysis_log = AnalysisLog(path, Heading(rollout="r", policy=POLICY), disk)
    assert asyncio.run(analysis_log.last()) is None
    asyncio.run(analysis_log.append(0, evidence(50)))
    heading, found = read(path.read_bytes(), "log")
    assert (heading.rollout, len(found)) == ("r", 1)


def test_what_is_not_an_analysis_run_is_named_by_its_line(path):
    lines = path.read_text().splitlines()
    lines[2] = '{"attempt": "x"}'
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(DataError, match="line 3: not an analysis run"):
        read(path.read_bytes(), "log")
    assert replayed(path).returncode == 65


def test_a_missing_file_is_64(tmp_path):
    assert replayed(tmp_path / "nothing").returncode == 64


@pytest.mark.parametrize("left", [b"", b'{"rollout": "r", "pol'])
def test_a_rollout_without_analysis_runs_has_nothing_to_replay(tmp_path, left):
    (tmp_path / "looks.jsonl").write_bytes(left)
    assert replayed(tmp_path / "looks.jsonl").returncode == 0


def test_an_empty_replay_is_equal():
    assert list(replay(Heading(rollout="r", policy=POLICY), [])) == []
