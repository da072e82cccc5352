"""Detect a training that hangs, print the stack of each rank, and end it.

NCCL and gloo give up on a silent peer after `jobs.finetune.automodel.TIMEOUT_MINUTES` at best; a training of one rank
has no peer at all.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event, Thread

from include.errors import TryAgainError
from jobs.finetune.heartbeat import Heartbeat, Heartbeats

STEP_FACTOR = 20
"""A rank may be silent for as long as this many of its own steps take, where that is more than `hang_seconds`."""

START_FACTOR = 5
"""Until its first step, before which it loads the model, a rank may be silent for this many times `hang_seconds`."""

_POLL_SECONDS = 0.5
_STACK_SECONDS = 5.0


def dump_stacks_on_request(rank: int, folder: Path) -> None:
    """Make this process write its Python stacks into `folder` on SIGUSR1."""
    # Kept open for the life of the process: faulthandler writes to its descriptor.
    stream = _stack_file(folder, rank).open("w")
    faulthandler.register(signal.SIGUSR1, file=stream, all_threads=True)


class HangError(TryAgainError):
    """A rank has sent no heartbeat for too long.

    Attributes:
        stopped: whether a signal has stopped the rank.
        silent: seconds since its last heartbeat.
    """

    def __init__(self, message: str, *, stopped: bool, silent: float) -> None:
        super().__init__(message)
        self.stopped, self.silent = stopped, silent


class HangDetector:
    """Watches the heartbeats of this node's ranks.

    Attributes:
        error: the hang that was found and ended, or None.

    Args:
        ranks: the node's, by their numbers in the whole training; `heartbeats` counts them from 0.
        hang_seconds: how long a rank may be silent (see `STEP_FACTOR` and `START_FACTOR` for when it is longer).
        folder: where the ranks write their stacks.
        world_size: number of ranks of the whole training.
        linger: seconds between detecting a hang and ending it, in which other nodes detect it, too.
    """

    def __init__(
        self,
        heartbeats: Heartbeats,
        ranks: range,
        hang_seconds: float,
        folder: Path,
        *,
        world_size: int | None = None,
        linger: float = 0.0,
    ) -> None:
        self.error: HangError | None = None
        self._heartbeats, self._ranks, self._folder = heartbeats, ranks, folder
        self._hang_seconds, self._linger = hang_seconds, linger
        self._world_size = world_size or len(ranks)

    def run(self, ended: Event) -> None:
        """Watch until `ended` is set, or a hang is found: then kill all ranks of this node."""
        poll = min(_POLL_SECONDS, self._hang_seconds / 10)
        silent, beats, before = dict.fromkeys(self._ranks, 0.0), dict.fromkeys(self._ranks, -1), time.monotonic()
        while not ended.wait(poll):
            now = time.monotonic()
            # Where this process itself did not run for a while, nothing is known of the ranks' silence.
            passed, before = min(now - before, 2 * poll), now
            for rank in self._ranks:
                heartbeat = self._read(rank)
                moved = heartbeat.pid == -1 or heartbeat.beats != beats[rank]
                silent[rank], beats[rank] = 0.0 if moved else silent[rank] + passed, heartbeat.beats
                if silent[rank] > (limit := self._limit(heartbeat)):
                    self.error = self._report(silent, limit)
                    ended.wait(self._linger)
                    kill_ranks(self._heartbeats, len(self._ranks))
                    return

    def _limit(self, heartbeat: Heartbeat) -> float:
        if not heartbeat.step:
            return START_FACTOR * self._hang_seconds
        return max(self._hang_seconds, STEP_FACTOR * heartbeat.step_seconds)

    def _read(self, rank: int) -> Heartbeat:
        return self._heartbeats.read(rank - self._ranks.start)

    def _report(self, silent: dict[int, float], limit: float) -> HangError:
        """Print the stack of each rank, and return the error that names the one to blame."""
        heartbeats = {rank: self._read(rank) for rank in self._ranks}
        states = {rank: _state(heartbeat.pid) for rank, heartbeat in heartbeats.items()}
        sys.stdout.flush()
        for rank, heartbeat in heartbeats.items():
            head = f"rank {rank} (pid {heartbeat.pid}, {states[rank]}), silent for {silent[rank]:.1f} s"
            print(f"{head}\n{self._stack(rank, heartbeat.pid, states[rank])}", file=sys.stderr, flush=True)
        stopped = [rank for rank, state in states.items() if state == "stopped"]
        first = stopped[0] if stopped else max(silent, key=lambda rank: silent[rank])
        why = ", and it is stopped by a signal" if stopped else ""
        return HangError(
            f"rank {first} of {self._world_size} hangs: nothing was heard of it for {silent[first]:.1f} s after "
            f"{heartbeats[first].step} steps of this try{why} (the limit is {limit:.1f} s, see finetune.hang_seconds; "
            "the ranks' stacks are above): the next try goes on from the last checkpoint",
            stopped=bool(stopped),
            silent=silent[first],
        )

    def _stack(self, rank: int, pid: int, state: str) -> str:
        if pid <= 0 or state == "gone":
            return "  no process to ask for its stack"
        if state == "stopped":
            return "  a stopped process cannot show its stack"
        file, until = _stack_file(self._folder, rank), time.monotonic() + _STACK_SECONDS
        os.kill(pid, signal.SIGUSR1)
        shown = ""
        while time.monotonic() < until:
            time.sleep(0.1)
            seen, shown = shown, file.read_text(encoding="utf-8", errors="replace")
            if shown and shown == seen:
                return shown.rstrip()
        return shown.rstrip() or f"  no answer within {_STACK_SECONDS:.0f} s: it is inside the kernel or the driver"


def kill_ranks(heartbeats: Heartbeats, ranks: int) -> None:
    """Kill those of the node's ranks that have begun."""
    for rank in range(ranks):
        pid = heartbeats.read(rank).pid
        if pid > 0 and _state(pid) != "gone":
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@contextmanager
def detecting(detector: HangDetector) -> Iterator[None]:
    """Run `detector` in a thread for as long as the body runs."""
    ended = Event()
    thread = Thread(target=detector.run, args=(ended,), name="hang detector", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _stack_file(folder: Path, rank: int) -> Path:
    return folder / f"rank{rank}.stack"


def _state(pid: int) -> str:
    """Return "running", "waiting", "stopped" or "gone", as /proc shows a process (proc_pid_stat(5))."""
    try:
        letter = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    except OSError:
        return "gone"
    return {"R": "running", "T": "stopped", "t": "stopped", "Z": "gone", "X": "gone"}.get(letter, "waiting")
