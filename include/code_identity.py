"""Which code a job is: a hash of its package, of what it imports from this project, and of its lock file.

Read from the source text, so that the side that starts a job need not be able to import it.
"""

from __future__ import annotations

import ast
import hashlib
import platform
from functools import lru_cache
from pathlib import Path

from include.errors import ConfigurationError

PROJECT = Path(__file__).resolve().parent.parent
_ROOMS = ("include", "jobs")


def code_identity(job: str, environment: str) -> str:
    """SHA-256 (hex) of the sources, the lock file and the Python version that decide what `python -m jobs.<job>` does.

    Covers every file of `jobs/<job>/`, and the modules of `jobs` and `include` reached from there by import.
    Comments and formatting count: telling them apart from code is not worth being wrong once.
    """
    folder = PROJECT / "jobs" / job
    lock = PROJECT / f"requirements-{environment}.txt"
    if not folder.is_dir():
        raise ConfigurationError(f"there is no job {job!r}: {folder} does not exist")
    if not lock.is_file():
        raise ConfigurationError(f"{lock} is missing: run `make lock`")
    pending = sorted(folder.rglob("*.py"))
    spec = PROJECT / "include" / "specs" / f"{job}.py"
    pending.append(spec)
    seen: set[Path] = set()
    while pending:
        path = pending.pop()
        if path in seen:
            continue
        seen.add(path)
        pending.extend(_imports(path, path.stat().st_mtime_ns))
    state = hashlib.sha256(platform.python_version().encode())
    others = {path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    for path in [*sorted(seen | others), lock]:
        state.update(path.relative_to(PROJECT).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return state.hexdigest()


@lru_cache(maxsize=1024)
def _imports(path: Path, _mtime_ns: int) -> tuple[Path, ...]:
    """The project's own modules that the module at `path` imports, wherever in it the import stands."""
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
