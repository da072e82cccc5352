"""Runs a command so that its whole process tree ends when its parent does, however the parent ends.

`python -m operators.local.supervisor --grace SECONDS -- COMMAND …`, with a pipe as standard input whose other end the
parent holds. When that end closes (the parent asked, crashed, or was SIGKILLed), or on SIGTERM, the command gets
SIGTERM, and after the grace period every descendant of this process gets SIGKILL. As a subreaper this process inherits
every orphan among them, also those that started a session of their own, as torch's elastic agent and its workers do.
The command's TMPDIR is a folder of its own, removed with all that a killed process has left in it.

Exits with the command's code, 128 + n where signal n ended it. Standard library only: it must start in milliseconds.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_TRY_AGAIN = 75
_libc = ctypes.CDLL(None, use_errno=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m operators.local.supervisor", description=__doc__)
    parser.add_argument("--grace", type=float, required=True, help="seconds between SIGTERM and SIGKILL")
    parser.add_argument("command", nargs="+")
    arguments = parser.parse_args()
    if _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER) failed")
    wake_read, wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
        signal.signal(number, lambda *_: None)
    # The parent may end while the command still writes its last lines: they are dropped, and no error.
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    try:
        scratch = tempfile.mkdtemp(prefix="anemone-")
    except OSError as error:
        print(f"error: no temporary folder can be created ({error}): free some space there, then clear this task")
        return _TRY_AGAIN
    try:
        child = subprocess.Popen(
            arguments.command,
            env={**os.environ, "TMPDIR": scratch},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            preexec_fn=_die_with_parent,
        )
        try:
            return _watch(child, wake_read, arguments.grace)
        finally:
            _kill_descendants()
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _die_with_parent() -> None:
    # For a SIGKILL of this process itself, which leaves nobody to end the command.
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _watch(child: subprocess.Popen[bytes], wake: int, grace: float) -> int:
    """Forward the command's output until it has ended. Return its exit code."""
    assert child.stdout is not None
    output = child.stdout.fileno()
    watched = {sys.stdin.fileno(), wake, output}
    deadline: float | None = None
    while True:
        timeout = None if deadline is None else max(0.0, deadline - time.monotonic())
        ready, _, _ = select.select(watched, [], [], timeout)
        stop = False
        if output in ready and not _forward(output):
            watched.discard(output)
        if sys.stdin.fileno() in ready and not os.read(sys.stdin.fileno(), 4096):
            watched.discard(sys.stdin.fileno())
            stop = True
        if wake in ready:
            stop = stop or bool({signal.SIGTERM, signal.SIGINT} & set(os.read(wake, 512)))
        if stop and deadline is None:
            deadline = time.monotonic() + grace
            if child.poll() is None:
                child.terminate()
        if deadline is not None and time.monotonic() >= deadline:
            child.kill()
        _reap_orphans(child.pid)
        code = child.poll()
        if code is not None:
            _drain(output, watched)
            return code if code >= 0 else 128 - code


def _forward(output: int) -> bool:
    data = memoryview(os.read(output, 65536))
    more = bool(data)
    with contextlib.suppress(OSError):
        while data:
            data = data[os.write(1, data) :]
    return more


def _drain(output: int, watched: set[int]) -> None:
    """Forward what is already in the pipe, without waiting for its end: a surviving descendant may hold it open."""
    while output in watched and select.select([output], [], [], 0)[0]:
        if not _forward(output):
            return


def _reap_orphans(main: int) -> None:
    """Reap inherited processes that have ended; `Popen.poll` reaps the command itself."""
    for pid in _children(os.getpid()):
        if pid != main:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)


def _kill_descendants() -> None:
    """SIGKILL the descendants of this process until there are none."""
    while pids := _children(os.getpid()):
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


if __name__ == "__main__":
    sys.exit(main())
