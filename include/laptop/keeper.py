"""Starts serving services again that died or hang: on one machine nobody else does. Standard library only.

`python -m include.laptop.keeper` is a service itself. The services are no part of its session: they live on where it
is killed, and the next one takes them over by their records. It acts under the lock of `make up` and `make down`.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from types import FrameType

from include.events import format_event
from include.laptop.components import exclusive
from include.laptop.serving import SupervisedService, supervised_services


@dataclass(frozen=True)
class Timing:
    """All in seconds.

    Attributes:
        poll: between two checks. `timeout`: for one answer.
        hung: without an answer, and at least `misses` times in a row, until a service counts as hung.
        start: how long after its start it may stay without an answer.
        first_pause: before the first restart; each further one waits twice as long, up to `longest_pause`.
        recovery: of health, after which the first pause holds again.
    """

    poll: float = 1.0
    timeout: float = 3.0
    hung: float = 10.0
    misses: int = 3
    start: float = 120.0
    first_pause: float = 1.0
    longest_pause: float = 30.0
    recovery: float = 60.0


class Supervision:
    """One service under supervision."""

    def __init__(self, supervised: SupervisedService, timing: Timing) -> None:
        self._supervised = supervised
        self._timing = timing
        self._pause = timing.first_pause
        self._restart_at: float | None = None
        self._healthy_since: float | None = None
        self._missing_since: float | None = None
        self._misses = 0
        self._answered = False

    def check(self) -> None:
        """Check once, and act where that is due; never wait for a `make up` or `make down`."""
        if not self._supervised.service.running():
            self._restart()
        elif self._supervised.answers(self._timing.timeout):
            self._well()
        else:
            self._missed()

    def _restart(self) -> None:
        service, now = self._supervised.service, time.monotonic()
        if self._restart_at is None:
            self._restart_at = now + self._pause
            _say("down", service=service.name, restart_in=self._pause, last_line=service.last_lines(1))
        if now < self._restart_at:
            return
        with exclusive(wait=False) as acquired:
            if not acquired or service.running():
                return
            service.stop(grace=0)  # What it started may live on.
            service.start(self._supervised.command, os.environ)
        _say("restarted", service=service.name)
        self._pause = min(2 * self._pause, self._timing.longest_pause)
        self._restart_at = self._healthy_since = self._missing_since = None
        self._misses, self._answered = 0, False

    def _well(self) -> None:
        now = time.monotonic()
        if self._healthy_since is None:
            self._healthy_since = now
            _say("alive", service=self._supervised.name)
        if now - self._healthy_since >= self._timing.recovery:
            self._pause = self._timing.first_pause
        self._restart_at = self._missing_since = None
        self._misses, self._answered = 0, True

    def _missed(self) -> None:
        service, now = self._supervised.service, time.monotonic()
        if self._missing_since is None:
            self._missing_since = now
        self._misses += 1
        self._healthy_since = None
        starting = not self._answered and service.age() < self._timing.start
        patient = self._misses < self._timing.misses or now - self._missing_since < self._timing.hung
        if starting or patient:
            return
        with exclusive(wait=False) as acquired:
            if acquired:
                _say("hung", service=service.name, seconds=now - self._missing_since, misses=self._misses)
                service.stop(grace=0)


def keep(services: Sequence[SupervisedService], stopping: threading.Event, timing: Timing | None = None) -> None:
    """Watch over `services` until `stopping` is set; each has a thread, so that none waits for another's time-out."""
    timing = timing or Timing()

    def run(supervised: SupervisedService) -> None:
        supervision = Supervision(supervised, timing)
        while not stopping.is_set():
            try:
                supervision.check()
            except OSError as error:
                # A full disk or process table passes; a keeper that ended would not come back.
                _say("check_failed", service=supervised.name, error=str(error))
            stopping.wait(timing.poll)

    threads = [threading.Thread(target=run, args=(supervised,), name=supervised.name) for supervised in services]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def main() -> None:
    stopping = threading.Event()

    def stop(number: int, frame: FrameType | None) -> None:
        stopping.set()

    signal.signal(signal.SIGTERM, stop)
    _say("keeping", services=",".join(supervised.name for supervised in supervised_services()), pid=os.getpid())
    keep(supervised_services(), stopping)


def _say(event: str, **fields: object) -> None:
    line = format_event(event, {"time": datetime.now(UTC).isoformat(timespec="seconds"), **fields})
    # With its end in one piece: every service has a thread that writes.
    print(line + "\n", end="", flush=True)


if __name__ == "__main__":
    main()
