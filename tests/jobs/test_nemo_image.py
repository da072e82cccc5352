"""What the jobs in NVIDIA's image import is in it: added by name, without dependencies, or the base's own."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, packages_distributions, requires

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from include.code_identity import _imports
from include.home import PROJECT

DOCKERFILE = PROJECT / "include" / "deploy" / "docker" / "nemo.Dockerfile"
JOBS = ("evaluate", "finetune", "merge")

BASE = ("nemo-automodel",)
"""What the image was made for. It brings what this needs by itself: torch, transformers' own requirements, datasets."""


def required(names: Iterable[str]) -> set[str]:
    """Distributions that `names` need, and theirs, as this environment's metadata say it."""
    found: set[tuple[str, frozenset[str]]] = set()
    pending = [(canonicalize_name(name), frozenset[str]()) for name in names]
    while pending:
        name, extras = pending.pop()
        if (name, extras) in found:
            continue
        found.add((name, extras))
        try:
            needs = [Requirement(line) for line in requires(name) or ()]
        except PackageNotFoundError:
            continue  # for GPUs only
        pending += [
            (canonicalize_name(need.name), frozenset(need.extras))
            for need in needs
            if need.marker is None or any(need.marker.evaluate({"extra": extra}) for extra in extras | {""})
        ]
    return {name for name, _ in found}


@pytest.fixture(scope="module")
def added() -> set[str]:
    run = re.search(r"additions\.sh requirements/jobs\.txt((?: \\\n|[^\n])*)", DOCKERFILE.read_text())
    assert run is not None
    return set(run[1].replace("\\\n", " ").split())


def test_what_is_added_without_dependencies_has_them(added: set[str]) -> None:
    assert required(added) - required(BASE) - added == set()


@pytest.mark.parametrize("job", JOBS)
def test_what_a_job_imports_is_there(added: set[str], job: str) -> None:
    pending = [*(PROJECT / "jobs" / job).rglob("*.py"), PROJECT / "include" / "specs" / f"{job}.py"]
    seen, imported = set(), set()
    while pending:
        path = pending.pop()
        if path not in seen:
            seen.add(path)
            pending += _imports(path, path.stat().st_mtime_ns)
            for node in ast.walk(ast.parse(path.read_bytes())):
                if isinstance(node, ast.Import):
                    imported |= {alias.name.split(".")[0] for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and node.module:
                    imported.add(node.module.split(".")[0])
    foreign = imported - {"include", "jobs"} - sys.stdlib_module_names
    assert "torch" in foreign
    distributions = packages_distributions()
    there = required(BASE) | added
    lacking = {name for name in foreign if not {canonicalize_name(one) for one in distributions[name]} & there}
    assert lacking == set()
