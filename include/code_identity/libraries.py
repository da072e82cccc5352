"""The libraries that imports stand for, at the versions of a lock file.

Read from the lock file alone: the side that starts a job has other libraries installed than the job.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

_PIN = re.compile(r"^([\w.-]+)==([^\s;\\]+)|^ +# via (.+)$", re.MULTILINE)

_PROVIDED_BY = {"fasttext": "fasttext-predict", "sklearn": "scikit-learn", "yaml": "pyyaml"}
"""Distributions whose modules have another name. One that is missing here costs precision and nothing else."""


def versions(lock: Path, modules: Iterable[str], paths: Iterable[str] = ()) -> list[str]:
    """Return the pins (`name==version`) of the distributions behind imported modules, and of all that those need.

    What a library computes rests on what it is built on: transformers tokenizes with tokenizers. So all that a
    distribution requires counts as well, as the lock file's `# via` says. A module that no distribution of the lock
    file is known to hold counts as every one of them.

    Args:
        lock: the lock file.
        modules: top-level ones; Python's own are left out.
        paths: dotted names that may lie in a module of a library; where they do not, they are left out.
    """
    status = lock.stat()
    pins, needs = _read(lock, status.st_mtime_ns, status.st_size, status.st_ino)
    wanted = {_distribution(module) for module in modules if module not in sys.stdlib_module_names}
    wanted |= {name for path in paths if (name := _distribution(path.partition(".")[0])) in pins}
    # Without "# via" nothing is known of what needs what.
    if not wanted <= pins.keys() or not needs:
        return sorted(f"{name}=={version}" for name, version in pins.items())
    found: set[str] = set()
    while wanted:
        name = wanted.pop()
        if name not in found:
            found.add(name)
            wanted |= needs.get(name, set())
    return sorted(f"{name}=={pins[name]}" for name in found)


def every_version(lock: Path) -> list[str]:
    """Return all pins of a lock file."""
    status = lock.stat()
    pins, _ = _read(lock, status.st_mtime_ns, status.st_size, status.st_ino)
    return sorted(f"{name}=={version}" for name, version in pins.items())


def _distribution(module: str) -> str:
    return _PROVIDED_BY.get(module, re.sub(r"[-_.]+", "-", module).lower())


@lru_cache(maxsize=8)
def _read(lock: Path, *_status: int) -> tuple[dict[str, str], dict[str, set[str]]]:
    """Return the version of each distribution, and what each needs."""
    pins: dict[str, str] = {}
    needs: dict[str, set[str]] = {}
    last = ""
    for name, version, via in _PIN.findall(lock.read_text(encoding="utf-8")):
        if name:
            last = name
            pins[name] = version
        else:
            for parent in via.split(", "):
                needs.setdefault(parent, set()).add(last)
    return pins, needs
