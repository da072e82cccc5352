"""What installed distributions say of themselves."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, requires

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


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
