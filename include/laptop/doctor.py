"""`make doctor`: can this machine run Anemone? One sentence for each thing that is missing; exit 1 if there is any.

Standard library only, and no syntax newer than Python 3.8, so that an old Python can still say that it is too old.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import socket
import sys
from pathlib import Path

OLDEST_PYTHON, NEWEST_PYTHON = (3, 11), (3, 12)
OLDEST_GLIBC = (2, 35)
LEAST_CORES = 2
LEAST_MEMORY = 37 * 10**8
"""Bytes; measured: Airflow 1.5 GB, serving with three releases 0.5 GB, and two jobs at once with 0.8 GB each."""

INSTALLED = {"airflow": 600 * 10**6, "jobs": 3600 * 10**6, "serving": 600 * 10**6}
"""Bytes on disk of each environment, byte code included; measured on CPython 3.11 with torch's CPU build."""

LEAST_SHARED_MEMORY = 128 * 10**6
"""Bytes of /dev/shm: Triton hands requests to its Python models there."""

WORKING_SPACE = 800 * 10**6
"""Bytes for uv itself, the store, logs and databases of a few runs of the demo."""


_PORT_STEP = 20
"""To the next block of ports that has none in common with this one."""


def diagnose() -> list[str]:
    """Return a sentence for each thing that is missing."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return [
            f"Anemone runs on Linux x86-64, this is {platform.system()} {platform.machine()}: "
            "use such a machine, or a virtual one (WSL 2 will do)"
        ]
    found = [_python(), _venv(), _glibc(), _cores(), _memory(), _make()]
    if found[0] is None:
        found += [_disk(), _shared_memory(), _ports()]
    return [problem for problem in found if problem is not None]


def _python() -> str | None:
    version = sys.version_info[:2]
    if OLDEST_PYTHON <= version <= NEWEST_PYTHON:
        return None
    return (
        f"Python {_dotted(OLDEST_PYTHON)} to {_dotted(NEWEST_PYTHON)} is needed, {sys.executable} is "
        f"{platform.python_version()}: install one and run `make PYTHON=python3.11 …`"
    )


def _venv() -> str | None:
    missing = [module for module in ("venv", "ensurepip") if importlib.util.find_spec(module) is None]
    if not missing:
        return None
    return (
        f"this Python has no {' and no '.join(missing)}: install its venv package "
        f"(on Debian and Ubuntu: apt install python{_dotted(sys.version_info[:2])}-venv)"
    )


def _glibc() -> str | None:
    name, version = platform.libc_ver()
    if name == "glibc" and tuple(int(part) for part in version.split(".")[:2]) >= OLDEST_GLIBC:
        return None
    here = f"{name} {version}" if name else "another C library"
    return f"glibc {_dotted(OLDEST_GLIBC)} or newer is needed, found {here}: use Debian 12, Ubuntu 22.04 or newer"


def _cores() -> str | None:
    cores = len(os.sched_getaffinity(0))
    if cores >= LEAST_CORES:
        return None
    return f"{LEAST_CORES} cores are needed, {cores} may be used here: give the machine or the container more"


def _memory() -> str | None:
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if memory >= LEAST_MEMORY:
        return None
    return f"{LEAST_MEMORY / 1e9:.1f} GB of memory are needed, this machine has {memory / 1e9:.1f}: give it more"


def _make() -> str | None:
    return (
        None if shutil.which("make") else "make is not installed: install it (on Debian and Ubuntu: apt install make)"
    )


def _disk() -> str | None:
    from include.home import home
    from include.laptop.setup import is_ready

    need = WORKING_SPACE + sum(size for environment, size in INSTALLED.items() if not is_ready(environment))
    folder = _existing(home())
    free = shutil.disk_usage(str(folder)).free
    if free >= need:
        return None
    return (
        f"{need / 1e9:.1f} GB are needed in {folder}, {free / 1e9:.1f} are free: "
        "free some, or point ANEMONE_HOME at a larger disk"
    )


def _shared_memory() -> str | None:
    from include.laptop.home import run_folder
    from include.laptop.services import Service

    if Service(run_folder(), "triton").running():
        return None
    folder = "/dev/shm"
    if not os.access(folder, os.W_OK):
        return f"{folder} cannot be written, and Triton needs it: mount a tmpfs there"
    free = shutil.disk_usage(folder).free
    if free >= LEAST_SHARED_MEMORY:
        return None
    return (
        f"{LEAST_SHARED_MEMORY / 1e6:.0f} MB are needed in {folder} for Triton, {free / 1e6:.0f} are free: free some, "
        "or give the container more (docker run --shm-size=1g)"
    )


def _ports() -> str | None:
    from include.home import port, serving_ports
    from include.laptop.home import run_folder
    from include.laptop.services import Service

    try:
        numbers = {"api-server": [port()]}
    except ValueError as error:
        return str(error)
    for name, number in serving_ports().items():
        numbers.setdefault(name.partition("_")[0], []).append(number)
    first, last = _outgoing_ports()
    if any(first <= number <= last for own in numbers.values() for number in own):
        # A client that tries again and again to reach such a port while nobody listens there is given it for its own
        # end one day, has then connected to itself, and keeps the port from the server that is being started again.
        return (
            f"ANEMONE_PORT {port()} and the 15 after it lie among the ports of outgoing connections ({first} to {last}"
            f"): choose one outside, as in `make ANEMONE_PORT={8080 + _PORT_STEP} …`"
        )
    wanted = [
        number for service, own in numbers.items() if not Service(run_folder(), service).running() for number in own
    ]
    taken = [number for number in wanted if not _is_free(number)]
    if not taken:
        return None
    names = ", ".join(map(str, taken))
    ports, are, holds = ("port", "is", "what holds it") if len(taken) == 1 else ("ports", "are", "what holds them")
    return f"{ports} {names} on 127.0.0.1 {are} taken: stop {holds}, or run `make ANEMONE_PORT={port() + _PORT_STEP} …`"


def _outgoing_ports() -> tuple[int, int]:
    first, last = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()
    return int(first), int(last)


def _is_free(number: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # As servers do, so that connections still in TIME_WAIT do not count as a taken port.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", number))
        except OSError:
            return False
    return True


def _existing(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(str(part) for part in version)


def main() -> int:
    missing = diagnose()
    for problem in missing:
        print("error: " + problem, file=sys.stderr)
    if not missing:
        print("This machine can run Anemone.")
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
