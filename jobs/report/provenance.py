"""The chain of artifacts: from what, by which code, at what cost."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple

from jobs.report.artifacts import Artifacts, artifact_of
from jobs.report.record import ChainArtifact, Versions


def describe_chain(artifacts: Artifacts, started: datetime) -> tuple[ChainArtifact, ...]:
    """Return every artifact, each after those it was made from.

    Args:
        started: of the run; what was finished before was reused.
    """
    roles = {found.manifest.name: role for role, found in artifacts}
    chain = []
    for role, (_, manifest) in artifacts:
        made = manifest.provenance
        named = map(artifact_of, (entry.uri for entry in manifest.inputs.values()))
        chain.append(
            ChainArtifact(
                role=role,
                job=manifest.job,
                name=manifest.name,
                digest=manifest.content_digest,
                code=manifest.code,
                inputs=tuple(roles.get(name, name) for name in named),
                reused=made.finished < started,
                finished=made.finished,
                wall_seconds=made.wall_seconds,
                cpu_seconds=made.cpu_seconds,
                peak_bytes=made.peak_rss_bytes,
                cost=made.cost,
                config=manifest.config,
            )
        )
    return tuple(chain)


def describe_versions(artifacts: Artifacts) -> Versions:
    """Return all values that occur, each once, in the order of the chain."""
    git: dict[str, None] = {}
    python: dict[str, None] = {}
    packages: dict[str, dict[str, None]] = defaultdict(dict)
    for _, (_, manifest) in artifacts:
        made = manifest.provenance
        git[_commit(made.git_sha, made.git_dirty)] = None
        python[made.python] = None
        for package, version in made.packages.items():
            packages[package][version] = None
    return Versions(
        git=tuple(git),
        python=tuple(python),
        packages={package: tuple(found) for package, found in sorted(packages.items())},
    )


def base_model(artifacts: Artifacts) -> str | None:
    """Return what the base model is called: a hub repository, a folder's own name, or the artifact's."""
    manifest = artifacts.manifest("base")
    if manifest is None:
        return None
    source: Any = manifest.config.get("source")
    if not isinstance(source, str):
        return manifest.name
    return source.rstrip("/").rpartition("/")[2] if source.startswith("/") else source


class Totals(NamedTuple):
    """Of what a run made itself; `cost` in US dollars, of those stages that have a price, None where none has one."""

    wall_seconds: float
    cpu_seconds: float
    cost: float | None


def totals(chain: Sequence[ChainArtifact]) -> Totals:
    """Return what a run's own stages took."""
    own = [made for made in chain if not made.reused]
    costs = [made.cost for made in own if made.cost is not None]
    return Totals(
        wall_seconds=sum(made.wall_seconds for made in own),
        cpu_seconds=sum(made.cpu_seconds for made in own),
        cost=sum(costs) if costs else None,
    )


def _commit(sha: str | None, dirty: bool | None) -> str:
    if sha is None:
        return "unknown"
    return sha[:12] + (" with local changes" if dirty else "")
