"""How the ranks of a training say that they live: a few numbers a rank, in memory that the job's process reads."""

from __future__ import annotations

import mmap
import os
import struct
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from statistics import median

_RECORD = struct.Struct("=qqqd")
_REMEMBERED_STEPS = 51


@dataclass(frozen=True)
class Reading:
    """What one rank last said.

    Attributes:
        pid: its process; 0 before it began, -1 once its work is done.
        beats: grows with every micro-batch, checkpoint and validation.
        step: optimizer steps that it has taken in this try.
        step_seconds: the median of its last steps, 0 before the second.
    """

    pid: int
    beats: int
    step: int
    step_seconds: float


class Pulse:
    """The numbers of all ranks, over one small file that every rank maps."""

    def __init__(self, path: Path) -> None:
        with path.open("r+b") as stream:
            self._memory = mmap.mmap(stream.fileno(), 0)

    @classmethod
    def create(cls, path: Path, ranks: int) -> Pulse:
        """Room for `ranks` ranks, reserved now: a map of a file that a full disk has no room for ends its process."""
        with path.open("xb") as stream:
            os.posix_fallocate(stream.fileno(), 0, ranks * _RECORD.size)
        return cls(path)

    def read(self, rank: int) -> Reading:
        return Reading(*_RECORD.unpack_from(self._memory, rank * _RECORD.size))

    def write(self, rank: int, reading: Reading) -> None:
        values = reading.pid, reading.beats, reading.step, reading.step_seconds
        _RECORD.pack_into(self._memory, rank * _RECORD.size, *values)


class Heart:
    """One rank's side of it."""

    def __init__(self, pulse: Pulse, rank: int) -> None:
        self._pulse, self._rank = pulse, rank
        self._beats = self._steps = 0
        self._durations: deque[float] = deque(maxlen=_REMEMBERED_STEPS)
        self._stepped: float | None = None
        self._say(os.getpid())

    def beat(self) -> None:
        """Work goes on."""
        self._beats += 1
        self._say(os.getpid())

    def step(self) -> None:
        """An optimizer step was taken."""
        now = time.monotonic()
        if self._stepped is not None:
            self._durations.append(now - self._stepped)
        self._stepped = now
        self._steps += 1
        self.beat()

    def end(self) -> None:
        """The work is done, well or badly: silence is no hang from here on."""
        self._say(-1)

    def _say(self, pid: int) -> None:
        typical = median(self._durations) if self._durations else 0.0
        self._pulse.write(self._rank, Reading(pid, self._beats, self._steps, typical))
