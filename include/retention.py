"""What of a store may go: decisions over what is there, who needs it, and when it was last used. Pure functions.

Nothing that is needed goes, nor what it was made from as far as its lineage has to stay whole; nothing that was used
within the last hours goes; of the rest goes what was not used for long, and, while the store is over its limit, what
was not used for longest.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Annotated, Literal

from pydantic import Field

from include.specs.base import Model

PLAN_VALID = timedelta(hours=1)
"""An older plan is not carried out: the world it was made for is gone."""

REPORTS = ("report", "canary")
"""Jobs whose artifacts tell of a run or a rollout; `canary` is what the controller commits as evidence."""

_READ_FOR = ("report",)
"""Of these, the ones that link to what they were made from."""

_CHECKPOINT = re.compile(r"(?P<run>.+)\.step\d{8}")


class Policy(Model):
    """What stays although nobody needs it now.

    Attributes:
        keep_versions: of each registered model the newest so many versions, with all that they were made from.
        keep_previous: of each target the last so many releases before the live one: what `rollback` can go to.
        keep_days: what nothing needs goes after so many days without use.
        keep_reports_days: reports and the evidence of rollouts stay so long, and the controller's own history.
        min_age_hours: nothing that was made or used within these goes, for whatever reason.
        max_bytes: of the whole store; above it goes what was not used for longest, before `keep_days`. None: no limit.
    """

    keep_versions: Annotated[int, Field(ge=1)] = 5
    keep_previous: Annotated[int, Field(ge=1)] = 3
    keep_days: Annotated[float, Field(gt=0, le=36500)] = 30
    keep_reports_days: Annotated[float, Field(gt=0, le=36500)] = 90
    min_age_hours: Annotated[float, Field(ge=1, le=876000)] = 24
    max_bytes: Annotated[int, Field(gt=0)] | None = None

    def floor(self, now: datetime) -> datetime:
        """What was used since then stays."""
        return now - timedelta(hours=self.min_age_hours)


@dataclass(frozen=True)
class Held:
    """A committed artifact.

    Attributes:
        inputs: names of what it was made from, as far as that lies in the same store.
        used: when a run last planned with it, if that was noted.
    """

    name: str
    job: str
    bytes: int
    made: datetime
    inputs: tuple[str, ...] = ()
    used: datetime | None = None


@dataclass(frozen=True)
class Damaged:
    """An artifact whose manifest cannot be read: it stays, and so does every artifact that its bytes name."""

    name: str
    bytes: int
    problem: str
    mentions: tuple[str, ...] = ()


@dataclass(frozen=True)
class Need:
    """Why artifacts stay; `names` may hold some that do not exist yet. What they were made from stays, too."""

    names: frozenset[str]
    reason: str


@dataclass(frozen=True)
class Leftover:
    """Something that is no artifact.

    Attributes:
        path: relative to the store's root.
        name: the artifact that it belongs to, if any.
        run: key of the run that it belongs to, if any.
        newest: when anything of it was last written.
        open: whether a process of this machine has it open.
    """

    kind: Literal["failed attempt", "spec", "note of a use", "record of a run", "temporary file"]
    path: str
    bytes: int
    newest: datetime
    name: str | None = None
    run: str | None = None
    open: bool = False


class Going(Model):
    """What goes: `path` is an artifact's name, or relative to the store's root."""

    kind: str
    path: str
    bytes: int
    last_used: datetime
    reason: str


class Staying(Model):
    """How much stays for one reason."""

    reason: str
    count: int
    bytes: int


class Plan(Model):
    """`plan.json`: what would go, what stays and why, and what a person has to see to."""

    made: datetime
    store: str
    policy: Policy
    going: tuple[Going, ...]
    staying: tuple[Staying, ...]
    trouble: tuple[str, ...] = ()

    @property
    def freed(self) -> int:
        """Bytes."""
        return sum(one.bytes for one in self.going)


@dataclass(frozen=True)
class Stock:
    """All that a store holds, and what is needed of it."""

    held: Sequence[Held]
    needs: Sequence[Need]
    damaged: Sequence[Damaged] = ()
    leftovers: Sequence[Leftover] = ()


def decide(stock: Stock, policy: Policy, now: datetime, *, store: str = "") -> Plan:
    """What goes and what stays.

    Doing what a plan says and planning again at the same `now` gives an empty plan.
    """
    needed = _needed(stock, policy, now)
    used = _last_used(stock.held)
    floor = policy.floor(now)
    present = {one.name for one in stock.held}
    planned = {name for need in stock.needs for name in need.names}
    keeps: dict[str, str] = {}
    goes: dict[str, str] = {}
    free: list[Held] = []
    for one in stock.held:
        checkpoint = _CHECKPOINT.fullmatch(one.name)
        run = checkpoint["run"] if checkpoint else None
        if one.name in needed:
            keeps[one.name] = needed[one.name]
        elif run in planned and run not in present:
            keeps[one.name] = "the training that it is a checkpoint of goes on"
        elif used[one.name] > floor:
            keeps[one.name] = f"used within the last {policy.min_age_hours:g} hours"
        elif run in present:
            goes[one.name] = "checkpoint of a training that is finished"
        elif used[one.name] < now - timedelta(days=policy.keep_days):
            goes[one.name] = f"not used for more than {policy.keep_days:g} days"
        else:
            keeps[one.name] = f"used within the last {policy.keep_days:g} days"
            free.append(one)
    _fit(stock, _swept(stock, keeps, planned, floor), free, used, keeps, goes, policy)
    swept = _swept(stock, keeps, planned, floor)
    going = [
        Going(kind="artifact", path=one.name, bytes=one.bytes, last_used=used[one.name], reason=goes[one.name])
        for one in sorted(stock.held, key=lambda one: (used[one.name], one.name))
        if one.name in goes
    ]
    going += [
        Going(kind=one.kind, path=one.path, bytes=one.bytes, last_used=one.newest, reason=_why(one)) for one in swept
    ]
    return Plan(
        made=now,
        store=store,
        policy=policy,
        going=tuple(going),
        staying=_summary(stock, keeps, swept),
        trouble=tuple(f"{one.problem}; until then it stays" for one in stock.damaged),
    )


def _needed(stock: Stock, policy: Policy, now: datetime) -> dict[str, str]:
    """Reason by name of everything that is needed, first reason first."""
    made_from = {one.name: one.inputs for one in stock.held} | {one.name: one.mentions for one in stock.damaged}
    found: dict[str, str] = {}
    for need in [*stock.needs, *(Need(frozenset([one.name]), "named by a damaged manifest") for one in stock.damaged)]:
        pending = sorted(need.names)
        while pending:
            name = pending.pop()
            if name not in found:
                found[name] = need.reason
                pending += made_from.get(name, ())
    young = now - timedelta(days=policy.keep_reports_days)
    for one in stock.held:
        if one.job in REPORTS and one.made >= young:
            for name in (one.name, *(one.inputs if one.job in _READ_FOR else ())):
                found.setdefault(name, f"a report or evidence of the last {policy.keep_reports_days:g} days")
    return found


def _last_used(held: Sequence[Held]) -> dict[str, datetime]:
    """When each was made, noted as used, or had something made from it, whichever came last."""
    found = {one.name: max(one.made, one.used or one.made) for one in held}
    for one in held:
        if not _CHECKPOINT.fullmatch(one.name):
            for name in one.inputs:
                if name in found:
                    found[name] = max(found[name], one.made)
    return found


def _swept(stock: Stock, keeps: Mapping[str, str], planned: set[str], floor: datetime) -> list[Leftover]:
    """The leftovers that go, where of the artifacts those in `keeps` stay."""
    damaged = {one.name for one in stock.damaged}
    awaited = planned - {one.name for one in stock.held}

    def is_over(one: Leftover) -> bool:
        if one.name in damaged or one.name in awaited:
            return False
        return one.kind in ("failed attempt", "temporary file") or one.name not in keeps

    old = [one for one in stock.leftovers if not one.open and one.newest <= floor]
    over = [one for one in old if one.kind != "record of a run" and is_over(one)]
    gone = {one.path for one in over}
    noted = {one.run for one in stock.leftovers if one.kind == "note of a use" and one.path not in gone}
    return over + [one for one in old if one.kind == "record of a run" and one.run not in noted]


def _fit(
    stock: Stock,
    swept: Sequence[Leftover],
    free: Sequence[Held],
    used: Mapping[str, datetime],
    keeps: dict[str, str],
    goes: dict[str, str],
    policy: Policy,
) -> None:
    """Move from `keeps` to `goes` what was not used for longest, until the store is within its limit."""
    if policy.max_bytes is None:
        return
    everything: Iterable[Held | Damaged | Leftover] = (*stock.held, *stock.damaged, *stock.leftovers)
    total = sum(one.bytes for one in everything) - sum(one.bytes for one in swept)
    total -= sum(one.bytes for one in stock.held if one.name in goes)
    for one in sorted(free, key=lambda one: (used[one.name], one.name)):
        if total <= policy.max_bytes:
            return
        del keeps[one.name]
        goes[one.name] = f"the store is over its limit of {policy.max_bytes:,} bytes"
        total -= one.bytes


def _why(one: Leftover) -> str:
    return {
        "failed attempt": "no manifest points to it, and nothing writes it",
        "spec": "its artifact does not exist",
        "note of a use": "its artifact does not exist",
        "record of a run": "the run has ended, and nothing that it used is left",
        "temporary file": "a crash left it",
    }[one.kind]


def _summary(stock: Stock, keeps: Mapping[str, str], swept: Sequence[Leftover]) -> tuple[Staying, ...]:
    counts: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    gone = {one.path for one in swept}
    parts = [
        *((keeps[one.name], one.bytes) for one in stock.held if one.name in keeps),
        *(("its manifest cannot be read", one.bytes) for one in stock.damaged),
        *(
            ("attempts, specs and records that are young or belong to what stays", one.bytes)
            for one in stock.leftovers
            if one.path not in gone
        ),
    ]
    for reason, size in parts:
        counts[reason][0] += 1
        counts[reason][1] += size
    return tuple(
        Staying(reason=reason, count=count, bytes=size)
        for reason, (count, size) in sorted(counts.items(), key=lambda item: -item[1][1])
    )
