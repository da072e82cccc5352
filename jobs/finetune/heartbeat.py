"""The heartbeats of a training's ranks: a few numbers a rank, in memory that the job's process reads."""

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
class Heartbeat:
    """The last heartbeat of one rank.

    Attributes:
        pid: its process; 0 before it began, -1 once its work is done.
        beats: grows with every micro-batch and validation, and with every piece of a checkpoint that is committed.
        step: optimizer steps that it has taken in this try.
        step_seconds: the median duration of its last steps, 0 before the second.
    """

    pid: int
    beats: int
    step: int
    step_seconds: float


class Heartbeats:
    """The heartbeats of a node's ranks, in one small file that every rank maps."""

    def __init__(self, path: Path) -> None:
        with path.open("r+b") as stream:
            self._memory = mmap.mmap(stream.fileno(), 0)

    @classmethod
    def create(cls, path: Path, ranks: int) -> Heartbeats:
        """Create the file for `ranks` ranks, and reserve its space: a write to a mapped file dies on a full disk."""
        with path.open("xb") as stream:
            os.posix_fallocate(stream.fileno(), 0, ranks * _RECORD.size)
        return cls(path)

    def read(self, rank: int) -> Heartbeat:
        """Return the last heartbeat of the node's rank `rank`, counted from 0."""
        return Heartbeat(*_RECORD.unpack_from(self._memory, rank * _RECORD.size))

    def write(self, rank: int, heartbeat: Heartbeat) -> None:
        """Replace the last heartbeat of the node's rank `rank`, counted from 0."""
        values = heartbeat.pid, heartbeat.beats, heartbeat.step, heartbeat.step_seconds
        _RECORD.pack_into(self._memory, rank * _RECORD.size, *values)


class HeartbeatSender:
    """One rank's side of its heartbeats."""

    def __init__(self, heartbeats: Heartbeats, rank: int) -> None:
        self._heartbeats, self._rank = heartbeats, rank
        self._beats = self._steps = 0
        self._durations: deque[float] = deque(maxlen=_REMEMBERED_STEPS)
        self._stepped: float | None = None
        self._send(os.getpid())

    def beat(self) -> None:
        """Show that work goes on. Any thread may call it."""
        self._beats += 1
        self._send(os.getpid())

    def step(self) -> None:
        """Count an optimizer step."""
        now = time.monotonic()
        if self._stepped is not None:
            self._durations.append(now - self._stepped)
        self._stepped = now
        self._steps += 1
        self.beat()

    def end(self) -> None:
        """Show that the work is done, well or badly: silence is no hang from here on."""
        self._send(-1)

    def _send(self, pid: int) -> None:
        typical = median(self._durations) if self._durations else 0.0
        self._heartbeats.write(self._rank, Heartbeat(pid, self._beats, self._steps, typical))
