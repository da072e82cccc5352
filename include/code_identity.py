"""The identity of a job's code: a hash of its package, of what it imports from this project, and of what it runs on.

That is its lock file and the Python version here, and on a cluster the image of its pod. Read from the source text, so
that the side that starts a job need not be able to import it.
"""

from __future__ import annotations

import ast
import hashlib
import platform
from functools import lru_cache
from pathlib import Path

from include.errors import ConfigurationError
from include.home import PROJECT
from include.specs import job_place

_ROOMS = ("include", "jobs")
_FOUND_BY_PLACE = "include/gates/__init__.py"
"""Imports the modules beside it by their names, which no import statement says."""

IMAGE = "ANEMONE_IMAGE"
"""Environment variable: in a pod, the reference of the image that it was started from."""


def code_identity(job: str, environment: str, *, image: str | None = None) -> str:
    """Return the SHA-256 (hex) of the sources that decide what `python -m jobs.<job>` does, and of what they run on.

    Covers every file of `jobs/<job>/`, and the modules of `jobs` and `include` reached from there by import.
    Comments and formatting count: ignoring them is not worth the risk of ignoring a change.

    Args:
        environment: whose lock file it is.
        image: of the pod that runs the job. It stands for the lock file and the Python version, which the side that
            starts a pod cannot know. One that names a digest stands for exactly one set of libraries; a tag is
            trusted.

    Raises:
        ConfigurationError: the job has no package, or the environment no lock file.
    """
    place = job_place(job)
    folder = PROJECT.joinpath("jobs", *place)
    lock = PROJECT / f"requirements/{environment}.txt"
    if not folder.is_dir():
        raise ConfigurationError(f"the job {job!r} has a spec but no package: {folder} does not exist")
    if image is None and not lock.is_file():
        raise ConfigurationError(f"{lock} is missing: run `make lock`")
    pending = sorted(folder.rglob("*.py"))
    pending.append(PROJECT.joinpath("include", "specs", *place).with_suffix(".py"))
    seen: set[Path] = set()
    while pending:
        path = pending.pop()
        if path in seen:
            continue
        seen.add(path)
        pending.extend(_imports(path, path.stat().st_mtime_ns))
        if path == PROJECT / _FOUND_BY_PLACE:
            pending.extend(path.parent.glob("*.py"))
    state = hashlib.sha256(platform.python_version().encode() if image is None else b"image\0" + image.encode() + b"\0")
    others = {path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    for path in [*sorted(seen | others), *([lock] if image is None else [])]:
        state.update(path.relative_to(PROJECT).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return state.hexdigest()


@lru_cache(maxsize=1024)
def _imports(path: Path, _mtime_ns: int) -> tuple[Path, ...]:
    """Return the project's own modules that the module at `path` imports, wherever in it the import is."""
    found: set[Path] = set()
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] in _ROOMS:
                for end in range(1, len(parts) + 1):
                    base = PROJECT.joinpath(*parts[:end])
                    found.update(file for file in (base.with_suffix(".py"), base / "__init__.py") if file.is_file())
    return tuple(sorted(found))
