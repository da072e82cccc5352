"""`make setup`: the environments `airflow`, `jobs` and `serving`, from their lock files. Standard library only.

With names of environments as arguments, those: `bench`, which `make bench` alone needs, is made in no other way.

Can be stopped at any moment and started again: a stamp is written last, and says what an environment was made from.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote

from include.home import PROJECT, home
from include.laptop.components import all_services
from include.laptop.home import NotOursError, make_home, python_of

ENVIRONMENTS = ("airflow", "jobs", "serving")
ON_REQUEST = ("bench",)
UV_VERSION = "0.13.8"

_DOWNLOAD = re.compile(r"^# download: (\d+) bytes in (\d+) packages$", re.MULTILINE)


class SetupError(Exception):
    """A step of the set-up failed; its own output stands above the message."""


def lock_file(environment: str) -> Path:
    """Return the lock file of an environment."""
    return PROJECT / f"requirements/{environment}.txt"


def uv() -> Path:
    """Return the path of the installer, which `set_up` installs."""
    return home() / "venvs" / "tools" / "bin" / "uv"


def is_ready(environment: str) -> bool:
    """Return whether the environment is complete, and made from the lock file as it is now."""
    stamp = _stamp_file(environment)
    return stamp.is_file() and stamp.read_text() == _stamp(environment) and python_of(environment).exists()


def set_up(environments: Sequence[str] = ENVIRONMENTS) -> None:
    """Make the environments that are missing or out of date; return at once where none is.

    Raises:
        SetupError: a command failed.
        NotOursError: `ANEMONE_HOME` is somebody else's folder.
    """
    folder = make_home() / "venvs"
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("Another `make setup` is running here; waiting for it …", flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        for environment in environments:
            if not is_ready(environment):
                if environment in ENVIRONMENTS and any(service.running() for service in all_services()):
                    raise SetupError(f"the environment {environment} is out of date and in use: run `make down` first")
                _bootstrap()
                _make(environment)


def _bootstrap() -> None:
    """Install uv into an environment of its own, by the pip that comes with Python."""
    stamp = f"{UV_VERSION} {sys.version}"
    stamp_file = _stamp_file("tools")
    if uv().exists() and stamp_file.is_file() and stamp_file.read_text() == stamp:
        return
    print(f"Installing uv {UV_VERSION} …", flush=True)
    folder = home() / "venvs" / "tools"
    _run([sys.executable, "-m", "venv", "--clear", str(folder)])
    _run([str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", f"uv=={UV_VERSION}"])
    stamp_file.write_text(stamp)


def _make(environment: str) -> None:
    lock = lock_file(environment)
    size, packages = download(environment)
    print(
        f"Setting up the environment {environment}: {packages} packages, {size / 1e6:.0f} MB to download "
        "(less what uv has in its cache) …",
        flush=True,
    )
    began = time.monotonic()
    stamp = _stamp(environment)
    _stamp_file(environment).unlink(missing_ok=True)
    python = python_of(environment)
    if not python.exists() or _version_of(python) != sys.version_info[:3]:
        _run([str(uv()), "venv", "--quiet", "--clear", "--python", sys.executable, str(python.parent.parent)])
    install = [str(uv()), "pip", "install", "--python", str(python)]
    _run([*install, "--requirements", str(lock), *_torch_options(lock)])
    _run([*install, "--quiet", "--no-deps", "--editable", str(PROJECT)])
    _stamp_file(environment).write_text(stamp)
    print(f"The environment {environment} is ready after {time.monotonic() - began:.0f} s.", flush=True)


def download(environment: str) -> tuple[int, int]:
    """Return the bytes and packages that installing an environment downloads at most, as its lock file says.

    Raises:
        SetupError: the lock file does not say it.
    """
    found = _DOWNLOAD.search(lock_file(environment).read_text())
    if found is None:
        raise SetupError(f"{lock_file(environment)} does not say its size: run `make lock`")
    return int(found[1]), int(found[2])


def _torch_options(lock: Path) -> list[str]:
    """Return uv's options for torch, if it is locked: the CPU build, or the CUDA build for the driver here.

    Local wheels (pip's own PIP_FIND_LINKS) come first; UV_TORCH_BACKEND overrides everything.
    """
    version = re.search(r"^torch==(\S+)", lock.read_text(), re.MULTILINE)
    if version is None or "UV_TORCH_BACKEND" in os.environ:
        return []
    tag = f"cp{sys.version_info[0]}{sys.version_info[1]}"
    for folder in os.environ.get("PIP_FIND_LINKS", "").split():
        wheels = Path(folder.replace("file://", "")).glob("torch-*.whl")
        if any(re.match(rf"torch-{re.escape(version[1])}(\+\w+)?-{tag}-", unquote(w.name)) for w in wheels):
            return ["--find-links", folder]
    return ["--torch-backend", "auto"]


def _stamp(environment: str) -> str:
    """Return a digest of what an environment is made from: lock file, project's metadata, interpreter, place."""
    state = hashlib.sha256()
    for path in (lock_file(environment), PROJECT / "pyproject.toml"):
        state.update(path.read_bytes() + b"\0")
    state.update(f"{sys.version}\0{PROJECT}\0{python_of(environment)}".encode())
    return state.hexdigest()


def _stamp_file(environment: str) -> Path:
    return home() / "venvs" / f"{environment}.stamp"


def _version_of(python: Path) -> tuple[int, ...]:
    command = [str(python), "-c", "import sys; print(*sys.version_info[:3])"]
    result = subprocess.run(command, capture_output=True, text=True)
    return tuple(int(part) for part in result.stdout.split()) if result.returncode == 0 else ()


def _run(command: list[str]) -> None:
    # Beside pyproject.toml, whose [tool.uv] leaves out what no laptop needs.
    if subprocess.run(command, cwd=PROJECT).returncode:
        raise SetupError(f"`{' '.join(command)}` failed: see above; `make setup` again continues where it stopped")


if __name__ == "__main__":
    unknown = sorted(set(sys.argv[1:]) - {*ENVIRONMENTS, *ON_REQUEST})
    if unknown:
        sys.exit(f"error: there is no environment {unknown[0]}: name {', '.join((*ENVIRONMENTS, *ON_REQUEST))}")
    try:
        set_up(sys.argv[1:] or ENVIRONMENTS)
    except (SetupError, NotOursError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("\nStopped; `make setup` again continues where it stopped.")
