"""Processes that live on after the command that started them: start, recognise, stop. Standard library only.

A service is the leader of a session of its own and is known by (boot, pid, start time), so that a stale record never
leads to a stranger's process. `python -m include.laptop.services RECORD COMMAND …` writes that record and then becomes
the command: there is no moment in which the service runs and is not on record.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from include.home import PROJECT


@dataclass(frozen=True)
class Identity:
    """One process for good: pids are used again, but not with the same start time (clock ticks) in the same boot."""

    boot: str
    pid: int
    start: int


class Service:
    """One named service with its record and its log.

    Args:
        folder: holds `<name>.json` (the record) and `<name>.log` (standard output and error, appended).
        name: what it is called in messages.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.name = name
        self.record = folder / f"{name}.json"
        self.log = folder / f"{name}.log"

    def start(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        """Start it and wait until it is on record. Call `stop` first for what is left of an earlier start."""
        self.record.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(self.record), *command],
                cwd=PROJECT,
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        while process.poll() is None and self._identity() != _identity(process.pid):
            time.sleep(0.01)

    def age(self) -> float:
        """Return the seconds since the process on record was started; 0 where it does not run."""
        identity = self._identity()
        if identity is None or not self.running():
            return 0.0
        return time.clock_gettime(time.CLOCK_BOOTTIME) - identity.start / os.sysconf("SC_CLK_TCK")

    def running(self) -> bool:
        """Return whether the process on record is alive (a zombie is not)."""
        identity = self._identity()
        return identity is not None and _identity(identity.pid) == identity

    def stop(self, grace: float) -> bool:
        """End it and every process of its session.

        SIGTERM goes to the leader; after `grace` seconds to whoever is left of the session; SIGKILL after as many more.

        Returns:
            Whether anything was there to end.
        """
        found = bool(self._session())
        identity = self._identity()
        if identity is not None and self.running():
            self._signal([identity.pid], signal.SIGTERM)
        self._wait(grace)
        self._signal(self._session(), signal.SIGTERM)
        self._wait(grace)
        while members := self._session():
            self._signal(members, signal.SIGKILL)
            time.sleep(0.05)
        self.record.unlink(missing_ok=True)
        return found

    def last_lines(self, count: int) -> str:
        """Return the last lines of its log, for a message."""
        try:
            with self.log.open("rb") as stream:
                stream.seek(max(0, self.log.stat().st_size - 65536))
                return "\n".join(stream.read().decode(errors="replace").splitlines()[-count:])
        except FileNotFoundError:
            return ""

    def _identity(self) -> Identity | None:
        try:
            return Identity(**json.loads(self.record.read_text()))
        except (FileNotFoundError, ValueError, TypeError):
            return None

    def _wait(self, seconds: float) -> None:
        """Wait until the session is empty, but no longer than `seconds`."""
        deadline = time.monotonic() + seconds
        while self._session() and time.monotonic() < deadline:
            time.sleep(0.05)

    def _signal(self, pids: list[int], number: int) -> None:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def _session(self) -> list[int]:
        """Return the pids of the living processes of the service's session.

        The kernel does not reuse a pid while it is a session's id, so where the leader is gone the session of
        that number is still the service's; where another process has the pid now, the session is empty.
        """
        identity = self._identity()
        if identity is None or identity.boot != _boot():
            return []
        leader = _stat(identity.pid)
        if leader is not None and leader[1] != identity.start:
            return []
        members = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and (stat := _stat(int(entry.name))) is not None:
                state, start, session = stat
                if session == identity.pid and start >= identity.start and state not in "ZX":
                    members.append(int(entry.name))
        return members


def plain_environment() -> dict[str, str]:
    """Return this process's environment without what it says about some other Airflow, and about this Python."""
    hidden = ("AIRFLOW_", "_AIRFLOW_", "PYTHONPATH", "PYTHONHOME")
    return {key: value for key, value in os.environ.items() if not key.startswith(hidden)}


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _stat(pid: int) -> tuple[str, int, int] | None:
    """Return state letter, start time in clock ticks after boot, and session of a process; None where there is none.

    Source: proc_pid_stat(5); the fields after the command's closing parenthesis start with number 3.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return fields[0], int(fields[19]), int(fields[3])


def _identity(pid: int) -> Identity | None:
    stat = _stat(pid)
    return None if stat is None or stat[0] in "ZX" else Identity(_boot(), pid, stat[1])


def _become(record: Path, command: list[str]) -> None:
    # `nohup … &` makes a child ignore SIGINT and SIGHUP; a service must receive both.
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    identity = _identity(os.getpid())
    assert identity is not None
    draft = record.with_suffix(".draft")
    draft.write_text(json.dumps(asdict(identity)))
    draft.replace(record)
    os.execvp(command[0], command)


if __name__ == "__main__":
    _become(Path(sys.argv[1]), sys.argv[2:])
