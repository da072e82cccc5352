"""Notice a training in which nothing moves any more, show where each rank stands, and end it.

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
from jobs.finetune.pulse import Pulse, Reading

STEPS = 20
"""A rank may be silent for as long as so many of its own steps take, where that is more than the floor."""

START = 5
"""Until its first step, which loads the model, a rank may be silent for so many times the floor."""

_POLL_SECONDS = 0.5
_ANSWER_SECONDS = 5.0


def answer(rank: int, folder: Path) -> None:
    """Let this process write its Python stacks into `folder` when it is asked with SIGUSR1."""
    # Kept open for the life of the process: faulthandler writes to its descriptor.
    stream = _stack_file(folder, rank).open("w")
    faulthandler.register(signal.SIGUSR1, file=stream, all_threads=True)


class HangError(TryAgainError):
    """Nothing moves any more.

    Attributes:
        stopped: whether a signal has stopped the rank. `silent`: for how many seconds nothing was heard of it.
    """

    def __init__(self, message: str, *, stopped: bool, silent: float) -> None:
        super().__init__(message)
        self.stopped, self.silent = stopped, silent


class Watch:
    """Over the ranks of this node.

    Attributes:
        found: the hang that was found and ended, or None.

    Args:
        ranks: the node's, by their numbers in the whole training; `pulse` counts them from 0.
        of: ranks of the whole training.
        linger: seconds between finding a hang and ending it, in which other nodes find it, too.
    """

    def __init__(
        self, pulse: Pulse, ranks: range, floor: float, folder: Path, *, of: int | None = None, linger: float = 0.0
    ) -> None:
        self.found: HangError | None = None
        self._pulse, self._ranks, self._floor, self._folder = pulse, ranks, floor, folder
        self._of, self._linger = of or len(ranks), linger

    def run(self, ended: Event) -> None:
        """Look until `ended`, or until a hang was found: then all ranks are killed."""
        poll = min(_POLL_SECONDS, self._floor / 10)
        silent, beats, before = dict.fromkeys(self._ranks, 0.0), dict.fromkeys(self._ranks, -1), time.monotonic()
        while not ended.wait(poll):
            now = time.monotonic()
            # Where this process itself did not run for a while, nothing is known of the ranks' silence.
            passed, before = min(now - before, 2 * poll), now
            for rank in self._ranks:
                reading = self._read(rank)
                moved = reading.pid == -1 or reading.beats != beats[rank]
                silent[rank], beats[rank] = 0.0 if moved else silent[rank] + passed, reading.beats
                limit = max(self._floor, STEPS * reading.step_seconds) if reading.step else START * self._floor
                if silent[rank] > limit:
                    self.found = self._tell(silent, limit)
                    ended.wait(self._linger)
                    end(self._pulse, len(self._ranks))
                    return

    def _read(self, rank: int) -> Reading:
        return self._pulse.read(rank - self._ranks.start)

    def _tell(self, silent: dict[int, float], limit: float) -> HangError:
        readings = {rank: self._read(rank) for rank in self._ranks}
        states = {rank: _state(reading.pid) for rank, reading in readings.items()}
        sys.stdout.flush()
        for rank, reading in readings.items():
            head = f"rank {rank} (pid {reading.pid}, {states[rank]}), silent for {silent[rank]:.1f} s"
            print(f"{head}\n{self._stack(rank, reading.pid, states[rank])}", file=sys.stderr, flush=True)
        stopped = [rank for rank, state in states.items() if state == "stopped"]
        first = stopped[0] if stopped else max(silent, key=lambda rank: silent[rank])
        why = ", and it is stopped by a signal" if stopped else ""
        return HangError(
            f"rank {first} of {self._of} hangs: nothing was heard of it for {silent[first]:.1f} s after "
            f"{readings[first].step} steps of this try{why} (the limit is {limit:.1f} s, see finetune.hang_seconds; "
            "the ranks' stacks are above): the next try goes on from the last checkpoint",
            stopped=bool(stopped),
            silent=silent[first],
        )

    def _stack(self, rank: int, pid: int, state: str) -> str:
        if pid <= 0 or state == "gone":
            return "  no process to ask for its stack"
        if state == "stopped":
            return "  a stopped process cannot show its stack"
        file, until = _stack_file(self._folder, rank), time.monotonic() + _ANSWER_SECONDS
        os.kill(pid, signal.SIGUSR1)
        shown = ""
        while time.monotonic() < until:
            time.sleep(0.1)
            seen, shown = shown, file.read_text(encoding="utf-8", errors="replace")
            if shown and shown == seen:
                return shown.rstrip()
        return shown.rstrip() or f"  no answer within {_ANSWER_SECONDS:.0f} s: it is inside the kernel or the driver"


def end(pulse: Pulse, ranks: int) -> None:
    """Kill the node's ranks, those that have begun."""
    for rank in range(ranks):
        pid = pulse.read(rank).pid
        if pid > 0 and _state(pid) != "gone":
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@contextmanager
def watching(watch: Watch) -> Iterator[None]:
    """Let `watch` look for as long as the body runs."""
    ended = Event()
    thread = Thread(target=watch.run, args=(ended,), name="hang watch", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _stack_file(folder: Path, rank: int) -> Path:
    return folder / f"rank{rank}.stack"


def _state(pid: int) -> str:
    """`running`, `waiting`, `stopped` or `gone`, from /proc (proc_pid_stat(5))."""
    try:
        letter = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    except OSError:
        return "gone"
    return {"R": "running", "T": "stopped", "t": "stopped", "Z": "gone", "X": "gone"}.get(letter, "waiting")
