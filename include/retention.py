"""Which artifacts of a store are deleted: decisions over an inventory, its roots and the times of last use.

Pure functions, in the manner of a garbage collector. What a root names is retained, with everything that it was made
from; so is whatever was used within the last hours. Of the rest, what was not used for long is deleted, and, while the
store is over its limit, what was not used for longest.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Annotated, Literal

from pydantic import AliasChoices, Field

from include.model import Model

PLAN_VALID = timedelta(hours=1)
"""An older plan is not carried out: what it was made from has changed since."""

REPORTS = ("report", "canary")
"""Jobs whose artifacts describe a run or a rollout; `canary` is what the controller commits as evidence."""

_LINKING_REPORTS = ("report",)
"""Of these, the ones that link to what they were made from."""

_CHECKPOINT = re.compile(r"(?P<run>.+)\.step\d{8}")


class Policy(Model):
    """What is retained although nothing needs it now.

    Attributes:
        keep_versions: of each registered model the newest so many versions, with all that they were made from.
        keep_previous: of each target the last so many releases before the live one: what `rollback` can go to.
        keep_days: what nothing needs is deleted after so many days without use.
        keep_reports_days: age up to which reports, the evidence of rollouts and the controller's history are retained.
        min_age_hours: nothing that was made or used within these is deleted, for whatever reason.
        max_bytes: of the whole store; above it what was not used for longest is deleted, before `keep_days` have
            passed. None: no limit.
    """

    keep_versions: Annotated[int, Field(ge=1)] = 5
    keep_previous: Annotated[int, Field(ge=1)] = 3
    keep_days: Annotated[float, Field(gt=0, le=36500)] = 30
    keep_reports_days: Annotated[float, Field(gt=0, le=36500)] = 90
    min_age_hours: Annotated[float, Field(ge=1, le=876000)] = 24
    max_bytes: Annotated[int, Field(gt=0)] | None = None

    def cutoff(self, now: datetime) -> datetime:
        """Return the moment since when whatever was used is retained."""
        return now - timedelta(hours=self.min_age_hours)


@dataclass(frozen=True)
class StoredArtifact:
    """A committed artifact.

    Attributes:
        inputs: names of what it was made from, as far as that lies in the same store.
        last_used: when a run last planned with it, if that was noted.
    """

    name: str
    job: str
    bytes: int
    created: datetime
    inputs: tuple[str, ...] = ()
    last_used: datetime | None = None


@dataclass(frozen=True)
class DamagedArtifact:
    """An artifact whose manifest cannot be read; it is retained, and so is every artifact that its bytes name."""

    name: str
    bytes: int
    problem: str
    mentions: tuple[str, ...] = ()


@dataclass(frozen=True)
class RootSet:
    """Artifacts that are retained for one reason, with what they were made from; some may not exist yet."""

    names: frozenset[str]
    reason: str


@dataclass(frozen=True)
class AuxiliaryFiles:
    """Files of a store that are part of no committed artifact.

    Attributes:
        path: of the file or folder, relative to the store's root.
        modified: when anything of it was last written.
        artifact: name of the artifact that it belongs to, if any.
        run: key of the run that it belongs to, if any.
        open: whether a process of this machine has it open.
    """

    kind: Literal["failed attempt", "spec", "note of a use", "record of a run", "temporary file"]
    path: str
    bytes: int
    modified: datetime
    artifact: str | None = None
    run: str | None = None
    open: bool = False


@dataclass(frozen=True)
class Inventory:
    """Everything that a store holds, and the roots among it."""

    artifacts: Sequence[StoredArtifact]
    roots: Sequence[RootSet]
    damaged: Sequence[DamagedArtifact] = ()
    auxiliary: Sequence[AuxiliaryFiles] = ()

    @property
    def bytes(self) -> int:
        """Size of the whole store."""
        sizes = [artifact.bytes for artifact in self.artifacts]
        sizes += [artifact.bytes for artifact in self.damaged]
        return sum(sizes) + sum(files.bytes for files in self.auxiliary)


class Deletion(Model):
    """Something to delete: `path` is an artifact's name, or relative to the store's root."""

    kind: str
    path: str
    bytes: int
    last_used: datetime
    reason: str


class Retained(Model):
    """How much is retained for one reason."""

    reason: str
    count: int
    bytes: int


class Plan(Model):
    """`plan.json`: what to delete, what is retained and why, and the problems that a person has to solve.

    Plans of version 0.1 and before say `going`, `staying` and `trouble`, and are still read.
    """

    made: datetime
    store: str
    policy: Policy
    deletions: tuple[Deletion, ...] = Field(validation_alias=AliasChoices("deletions", "going"))
    retained: tuple[Retained, ...] = Field(validation_alias=AliasChoices("retained", "staying"))
    problems: tuple[str, ...] = Field(default=(), validation_alias=AliasChoices("problems", "trouble"))

    @property
    def freed(self) -> int:
        """Bytes that the deletions free."""
        return sum(deletion.bytes for deletion in self.deletions)


def make_plan(inventory: Inventory, policy: Policy, now: datetime, *, store: str = "") -> Plan:
    """Return what of a store is to be deleted, and why the rest is not.

    Carrying a plan out and planning again at the same `now` gives a plan without deletions.

    Args:
        store: root URI of the store, for the plan's own record.
    """
    decision = _decide(inventory, policy, now)
    deleted_files = decision.deleted_files(inventory)
    deletions = [
        Deletion(
            kind="artifact",
            path=artifact.name,
            bytes=artifact.bytes,
            last_used=decision.last_used[artifact.name],
            reason=decision.deleted[artifact.name],
        )
        for artifact in sorted(inventory.artifacts, key=decision.least_recently_used)
        if artifact.name in decision.deleted
    ]
    deletions += [
        Deletion(
            kind=files.kind,
            path=files.path,
            bytes=files.bytes,
            last_used=files.modified,
            reason=_AUXILIARY_REASONS[files.kind],
        )
        for files in deleted_files
    ]
    return Plan(
        made=now,
        store=store,
        policy=policy,
        deletions=tuple(deletions),
        retained=_summary(inventory, decision.retained, deleted_files),
        problems=tuple(f"{artifact.problem}; until then it is retained" for artifact in inventory.damaged),
    )


_AUXILIARY_REASONS = {
    "failed attempt": "no manifest points to it, and nothing writes it",
    "spec": "its artifact does not exist",
    "note of a use": "its artifact does not exist",
    "record of a run": "the run has ended, and nothing that it used is left",
    "temporary file": "a crash left it",
}
"""Why auxiliary files of each kind are deleted, where they are."""


@dataclass(frozen=True)
class _Decision:
    """Reason by name of each artifact that is retained, and of each that is deleted.

    Attributes:
        last_used: of each artifact. `cutoff`: what was used since then is retained.
        planned: names of all roots, whether they exist or not.
    """

    retained: dict[str, str]
    deleted: dict[str, str]
    last_used: Mapping[str, datetime]
    cutoff: datetime
    planned: frozenset[str]

    def least_recently_used(self, artifact: StoredArtifact) -> tuple[datetime, str]:
        """Return the sort key that brings the least recently used artifact first."""
        return self.last_used[artifact.name], artifact.name

    def deleted_files(self, inventory: Inventory) -> list[AuxiliaryFiles]:
        """Return the auxiliary files to delete, given the artifacts that are retained so far."""
        damaged = {artifact.name for artifact in inventory.damaged}
        awaited = self.planned - {artifact.name for artifact in inventory.artifacts}

        def is_garbage(files: AuxiliaryFiles) -> bool:
            if files.artifact in damaged or files.artifact in awaited:
                return False
            return files.kind in ("failed attempt", "temporary file") or files.artifact not in self.retained

        old = [files for files in inventory.auxiliary if not files.open and files.modified <= self.cutoff]
        garbage = [files for files in old if files.kind != "record of a run" and is_garbage(files)]
        deleted = {files.path for files in garbage}
        noted = {
            files.run for files in inventory.auxiliary if files.kind == "note of a use" and files.path not in deleted
        }
        return garbage + [files for files in old if files.kind == "record of a run" and files.run not in noted]


def _decide(inventory: Inventory, policy: Policy, now: datetime) -> _Decision:
    needed = _needed(inventory, policy, now)
    last_used = _last_used(inventory.artifacts)
    present = {artifact.name for artifact in inventory.artifacts}
    planned = frozenset(name for roots in inventory.roots for name in roots.names)
    decision = _Decision({}, {}, last_used, policy.cutoff(now), planned)
    retained, deleted = decision.retained, decision.deleted
    evictable: list[StoredArtifact] = []
    for artifact in inventory.artifacts:
        name = artifact.name
        checkpoint = _CHECKPOINT.fullmatch(name)
        training = checkpoint["run"] if checkpoint else None
        if name in needed:
            retained[name] = needed[name]
        elif training in planned and training not in present:
            retained[name] = "the training that it is a checkpoint of has not ended"
        elif last_used[name] > decision.cutoff:
            retained[name] = f"used within the last {policy.min_age_hours:g} hours"
        elif training in present:
            deleted[name] = "checkpoint of a training that is finished"
        elif last_used[name] < now - timedelta(days=policy.keep_days):
            deleted[name] = f"not used for more than {policy.keep_days:g} days"
        else:
            retained[name] = f"used within the last {policy.keep_days:g} days"
            evictable.append(artifact)
    if policy.max_bytes is not None:
        _evict(inventory, decision, evictable, policy.max_bytes)
    return decision


def _needed(inventory: Inventory, policy: Policy, now: datetime) -> dict[str, str]:
    """Return the reason by name of everything that is reachable from a root, first reason first."""
    made_from = {artifact.name: artifact.inputs for artifact in inventory.artifacts}
    made_from |= {artifact.name: artifact.mentions for artifact in inventory.damaged}
    damaged = [RootSet(frozenset([artifact.name]), "named by a damaged manifest") for artifact in inventory.damaged]
    found: dict[str, str] = {}
    for roots in [*inventory.roots, *damaged]:
        pending = sorted(roots.names)
        while pending:
            name = pending.pop()
            if name not in found:
                found[name] = roots.reason
                pending += made_from.get(name, ())
    recent = now - timedelta(days=policy.keep_reports_days)
    for artifact in inventory.artifacts:
        if artifact.job in REPORTS and artifact.created >= recent:
            for name in (artifact.name, *(artifact.inputs if artifact.job in _LINKING_REPORTS else ())):
                found.setdefault(name, f"a report or evidence of the last {policy.keep_reports_days:g} days")
    return found


def _last_used(artifacts: Sequence[StoredArtifact]) -> dict[str, datetime]:
    """Return when each was made, was noted as used, or had something made from it, whichever came last."""
    found = {artifact.name: max(artifact.created, artifact.last_used or artifact.created) for artifact in artifacts}
    for artifact in artifacts:
        if not _CHECKPOINT.fullmatch(artifact.name):
            for name in artifact.inputs:
                if name in found:
                    found[name] = max(found[name], artifact.created)
    return found


def _evict(inventory: Inventory, decision: _Decision, evictable: Sequence[StoredArtifact], max_bytes: int) -> None:
    """Delete the least recently used of `evictable` until the store is within its limit."""
    total = inventory.bytes - sum(files.bytes for files in decision.deleted_files(inventory))
    total -= sum(artifact.bytes for artifact in inventory.artifacts if artifact.name in decision.deleted)
    for artifact in sorted(evictable, key=decision.least_recently_used):
        if total <= max_bytes:
            return
        del decision.retained[artifact.name]
        decision.deleted[artifact.name] = f"the store is over its limit of {max_bytes:,} bytes"
        total -= artifact.bytes


def _summary(
    inventory: Inventory, retained: Mapping[str, str], deleted_files: Sequence[AuxiliaryFiles]
) -> tuple[Retained, ...]:
    """Return what is retained by reason, the largest first."""
    deleted = {files.path for files in deleted_files}
    sizes: dict[str, list[int]] = defaultdict(list)
    for artifact in inventory.artifacts:
        if artifact.name in retained:
            sizes[retained[artifact.name]].append(artifact.bytes)
    for damaged in inventory.damaged:
        sizes["its manifest cannot be read"].append(damaged.bytes)
    for files in inventory.auxiliary:
        if files.path not in deleted:
            reason = "attempts, specs and records that are recent or belong to what is retained"
            sizes[reason].append(files.bytes)
    return tuple(
        Retained(reason=reason, count=len(each), bytes=sum(each))
        for reason, each in sorted(sizes.items(), key=lambda item: -sum(item[1]))
    )
