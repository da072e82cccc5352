"""Processes of this machine, as /proc shows them."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path


def stat(pid: int) -> list[str]:
    """Return the fields of /proc/<pid>/stat from the third on (state, parent, …); none where the process is gone."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return []


def alive(pid: int) -> bool:
    """Return whether a process is there and no zombie."""
    fields = stat(pid)
    return bool(fields) and fields[0] not in "ZX"


def parent(pid: int) -> int:
    """Return the parent's pid, 0 where the process is gone."""
    fields = stat(pid)
    return int(fields[1]) if fields else 0


def command_lines(home: Path) -> dict[int, list[str]]:
    """Return by pid the command lines of everything that was started with ANEMONE_HOME at `home`."""
    mark = f"ANEMONE_HOME={home}".encode()
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if mark in (folder / "environ").read_bytes().split(b"\0"):
                found[int(folder.name)] = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
    return found
