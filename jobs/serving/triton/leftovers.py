"""Clears away what a killed tritonserver left behind, before the next one starts on the same folder.

A server's record names its process and the prefix of its shared memory; nothing without that prefix is touched.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

from include.artifacts.naming import digest
from include.durable import fsync
from include.errors import ConfigurationError

RECORD = "triton.json"
_SHARED_MEMORY = Path("/dev/shm")


def write_record(folder: Path) -> str:
    """Record the calling process as the server of `folder`; return the prefix for its shared memory."""
    prefix = f"anemone-triton-{digest(str(folder))[:8]}-{os.getpid()}-"
    record = {"pid": os.getpid(), "started": _started(os.getpid()), "region": prefix}
    temporary = folder / f"{RECORD}.new"
    temporary.write_text(json.dumps(record) + "\n")
    fsync(temporary)
    temporary.replace(folder / RECORD)
    fsync(folder)
    return prefix


def clear_leftovers(folder: Path) -> list[str]:
    """End the stub processes and remove the shared memory of the folder's last server; return what was cleared.

    A stub ends by itself within two seconds after its server, except one that was handing over an answer, which waits
    for ever.

    Raises:
        ConfigurationError: that server still runs.
    """
    try:
        record = json.loads((folder / RECORD).read_text())
        pid, started, prefix = record["pid"], record["started"], record["region"]
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        return []  # there is none, or a power loss damaged it, and no process survives that
    if _started(pid) == started and pid != os.getpid():
        raise ConfigurationError(
            f"a Triton already runs on {folder} as process {pid}: stop it, or choose another folder"
        )
    cleared = [f"stub process {stub}" for stub in _end_stubs(prefix)]
    for region in _SHARED_MEMORY.glob(f"{prefix}*"):
        region.unlink(missing_ok=True)
        cleared.append(f"shared memory {region.name}")
    return cleared


def _end_stubs(prefix: str) -> Iterator[int]:
    """End the stubs whose shared memory has this prefix, which no other server has; yield their ids."""
    for process in Path("/proc").glob("[0-9]*"):
        pid = int(process.name)
        try:
            descriptor = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        try:
            # Read after the descriptor was opened, which stays with this process.
            arguments = (process / "cmdline").read_bytes().split(b"\0")
            if any(argument.startswith(prefix.encode()) for argument in arguments):
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)
                yield pid
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
        finally:
            os.close(descriptor)


def _started(pid: int) -> str | None:
    """Return when a process began, as the boot's id and the kernel's ticks since then; None where there is no process.

    After a restart of the machine another process can have the same pid and ticks.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    state, ticks = (fields := stat.rpartition(")")[2].split())[0], fields[19]
    if state in "ZX":
        return None
    return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()}:{ticks}"
