"""The watch over processes that really stop, wait and end."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from jobs.finetune import hang
from jobs.finetune.heartbeat import Heartbeat, Heartbeats, HeartbeatSender

FORK = multiprocessing.get_context("fork")


def _work(folder: Path, rank: int, beating: float, then: str) -> None:
    hang.dump_stacks_on_request(rank, folder)
    heartbeat = HeartbeatSender(Heartbeats(folder / "heartbeats"), rank)
    until = time.monotonic() + beating
    while time.monotonic() < until:
        heartbeat.step()
        time.sleep(0.01)
    if then == "end":
        heartbeat.end()
    threading.Event().wait()


@pytest.fixture
def ranks(tmp_path: Path) -> Iterator[Callable[..., tuple[Heartbeats, list[int]]]]:
    """Start processes that beat for a while, and then are silent, or say that they are done."""
    started: list[multiprocessing.process.BaseProcess] = []

    def start(*behaviours: tuple[float, str]) -> tuple[Heartbeats, list[int]]:
        heartbeats = Heartbeats.create(tmp_path / "heartbeats", len(behaviours))
        for rank, (beating, then) in enumerate(behaviours):
            started.append(FORK.Process(target=_work, args=(tmp_path, rank, beating, then)))
            started[-1].start()
        return heartbeats, [process.pid for process in started]

    yield start
    for process in started:
        process.kill()
        process.join()


def watch(heartbeats: Heartbeats, ranks: int, hang_seconds: float, folder: Path, seconds: float) -> hang.HangDetector:
    """Run a detector for so long, or until it finds something."""
    detector, ended = hang.HangDetector(heartbeats, range(ranks), hang_seconds, folder), threading.Event()
    timer = threading.Timer(seconds, ended.set)
    timer.start()
    detector.run(ended)
    timer.cancel()
    return detector


def test_a_silent_rank_is_found_its_stack_shown_and_all_are_killed(
    ranks: Callable, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    heartbeats, pids = ranks((60, "beat"), (0.2, "hang"))
    found = watch(heartbeats, 2, 1.0, tmp_path, 30).error
    assert found is not None
    assert str(found).startswith("rank 1 of 2 hangs: nothing was heard of it for ")
    assert "in _work" in capfd.readouterr().err
    for pid in pids:
        assert os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT).si_status == signal.SIGKILL


def test_a_stopped_rank_is_said_to_be_stopped(
    ranks: Callable, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    heartbeats, pids = ranks((60, "beat"), (60, "beat"))
    while not heartbeats.read(0).step:
        time.sleep(0.01)
    os.kill(pids[0], signal.SIGSTOP)
    found = watch(heartbeats, 2, 1.0, tmp_path, 30).error
    assert found is not None
    assert str(found).startswith("rank 0 of 2 hangs")
    assert found.stopped and "it is stopped by a signal" in str(found)
    assert "a stopped process cannot show its stack" in capfd.readouterr().err


def test_ranks_that_beat_or_are_done_are_left_alone(ranks: Callable, tmp_path: Path) -> None:
    heartbeats, pids = ranks((60, "beat"), (0.1, "end"))
    assert watch(heartbeats, 2, 0.7, tmp_path, 3).error is None
    assert all(os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None for pid in pids)


@pytest.mark.parametrize(
    ("heartbeat", "limit"),
    [
        pytest.param(
            Heartbeat(pid=0, beats=0, step=0, step_seconds=0.0), 0.6 * hang.START_FACTOR, id="before the first step"
        ),
        pytest.param(Heartbeat(pid=0, beats=9, step=5, step_seconds=0.01), 0.6, id="short steps"),
        pytest.param(Heartbeat(pid=0, beats=9, step=5, step_seconds=0.1), 0.1 * hang.STEP_FACTOR, id="long steps"),
    ],
)
def test_the_limit_follows_the_steps(tmp_path: Path, heartbeat: Heartbeat, limit: float) -> None:
    heartbeats = Heartbeats.create(tmp_path / "heartbeats", 1)
    heartbeats.write(0, heartbeat)
    begun = time.monotonic()
    assert f"(the limit is {limit:.1f} s" in str(watch(heartbeats, 1, 0.6, tmp_path, 30).error)
    assert time.monotonic() - begun > limit
