"""Which artifacts are deleted: for any graph of them, and for each rule by itself."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from hypothesis import given, settings
from hypothesis import strategies as st

from include.retention import (
    AuxiliaryFiles,
    DamagedArtifact,
    Inventory,
    Plan,
    Policy,
    RootSet,
    StoredArtifact,
    make_plan,
)

NOW = datetime(2026, 6, 1, tzinfo=UTC)
POLICY = Policy(keep_days=30, keep_reports_days=90, min_age_hours=24)


def ago(days: float) -> datetime:
    return NOW - timedelta(days=days)


def stored(name: str, days: float = 100, *, job: str = "merge", size: int = 1, **more) -> StoredArtifact:
    return StoredArtifact(name=name, job=job, bytes=size, created=ago(days), **more)


def deletions(inventory: Inventory, policy: Policy = POLICY) -> dict[str, str]:
    return {one.path: one.reason for one in make_plan(inventory, policy, NOW).deletions}


@st.composite
def inventories(draw) -> tuple[Inventory, Policy]:
    """Any graph without cycles: what a manifest names as an input was there before it, or is gone."""
    count = draw(st.integers(1, 9))
    names = [f"a-{number}" for number in range(count)]
    names = [
        f"{names[number - 1]}.step{number:08d}" if number and draw(st.integers(0, 5)) == 0 else name
        for number, name in enumerate(names)
    ]
    days = st.sampled_from([0, 0.5, 1, 2, 20, 29, 31, 60, 89, 91, 200])
    artifacts = [
        stored(
            name,
            draw(days),
            job=draw(st.sampled_from(["merge", "finetune", "report", "canary"])),
            size=draw(st.integers(0, 1000)),
            inputs=tuple(draw(st.lists(st.sampled_from([*names[:number], "gone"]), max_size=3))),
            last_used=draw(st.none() | days.map(ago)),
        )
        for number, name in enumerate(names)
    ]
    broken = draw(st.lists(st.sampled_from(artifacts), max_size=2, unique=True))
    damaged = [DamagedArtifact(one.name, one.bytes, f"{one.name} is damaged", one.inputs) for one in broken]
    artifacts = [one for one in artifacts if one not in broken]
    roots = [
        RootSet(frozenset(draw(st.lists(st.sampled_from([*names, "planned"]), max_size=3))), f"root {number}")
        for number in range(draw(st.integers(0, 2)))
    ]
    auxiliary = [
        AuxiliaryFiles(
            kind=draw(st.sampled_from(["failed attempt", "spec", "note of a use", "record of a run"])),
            path=f"left-{number}",
            bytes=draw(st.integers(0, 100)),
            modified=ago(draw(days)),
            artifact=draw(st.sampled_from([*names, "planned"])),
            run=draw(st.sampled_from(["r1", "r2"])),
            open=draw(st.booleans()),
        )
        for number in range(draw(st.integers(0, 4)))
    ]
    policy = POLICY.model_copy(update={"max_bytes": draw(st.none() | st.integers(1, 5000))})
    return Inventory(artifacts=artifacts, roots=roots, damaged=damaged, auxiliary=auxiliary), policy


def carried_out(inventory: Inventory, plan: Plan) -> Inventory:
    gone = {one.path for one in plan.deletions}
    return replace(
        inventory,
        artifacts=[one for one in inventory.artifacts if one.name not in gone],
        auxiliary=[one for one in inventory.auxiliary if one.path not in gone],
    )


def lineage(inventory: Inventory, names: set[str]) -> set[str]:
    made_from = {one.name: one.inputs for one in inventory.artifacts} | {
        one.name: one.mentions for one in inventory.damaged
    }
    found, pending = set(), list(names)
    while pending:
        name = pending.pop()
        if name not in found:
            found.add(name)
            pending += made_from.get(name, ())
    return found


@settings(max_examples=100)
@given(inventories())
def test_nothing_that_is_needed_is_deleted(case: tuple[Inventory, Policy]) -> None:
    inventory, policy = case
    gone = set(deletions(inventory, policy))
    needed = {name for roots in inventory.roots for name in roots.names} | {one.name for one in inventory.damaged}
    assert not gone & lineage(inventory, needed)
    for one in inventory.artifacts:
        last = max(one.created, one.last_used or one.created)
        young_report = one.job in ("report", "canary") and one.created > ago(90)
        assert one.name not in gone or (last <= ago(1) and not young_report)
    assert not gone & {one.path for one in inventory.auxiliary if one.open or one.modified > ago(1)}


@settings(max_examples=100)
@given(inventories())
def test_a_second_sweep_finds_nothing(case: tuple[Inventory, Policy]) -> None:
    inventory, policy = case
    left = carried_out(inventory, make_plan(inventory, policy, NOW))
    assert deletions(left, policy) == {}


@settings(max_examples=100)
@given(inventories())
def test_afterwards_the_store_is_within_its_limit_or_the_rest_must_be_retained(case: tuple[Inventory, Policy]) -> None:
    inventory, policy = case
    left = carried_out(inventory, make_plan(inventory, policy, NOW))
    total = sum(one.bytes for one in (*left.artifacts, *left.damaged, *left.auxiliary))
    retained = make_plan(left, policy, NOW).retained
    free = f"used within the last {policy.keep_days:g} days"
    assert policy.max_bytes is None or total <= policy.max_bytes or all(one.reason != free for one in retained)


@settings(max_examples=60)
@given(inventories())
def test_all_is_counted_once(case: tuple[Inventory, Policy]) -> None:
    inventory, policy = case
    plan = make_plan(inventory, policy, NOW)
    total = sum(one.bytes for one in (*inventory.artifacts, *inventory.damaged, *inventory.auxiliary))
    assert plan.freed + sum(one.bytes for one in plan.retained) == total


def test_the_lineage_of_a_root_is_retained() -> None:
    chain = [stored("base"), stored("tuned", inputs=("base",)), stored("merged", inputs=("tuned",)), stored("other")]
    inventory = Inventory(artifacts=chain, roots=[RootSet(frozenset(["merged"]), "live")])
    assert deletions(inventory) == {"other": "not used for more than 30 days"}


def test_age_counts_from_the_last_use_and_making_something_is_a_use() -> None:
    data, noted = stored("data"), stored("noted", last_used=ago(3))
    inventory = Inventory(artifacts=[data, noted, stored("model", 5, inputs=("data",))], roots=[])
    assert deletions(inventory) == {}


def test_a_store_over_its_limit_loses_the_least_recently_used() -> None:
    inventory = Inventory(
        artifacts=[stored("a", 10, size=4), stored("b", 20, size=4), stored("c", 5, size=4)], roots=[]
    )
    policy = POLICY.model_copy(update={"max_bytes": 8})
    assert deletions(inventory, policy) == {"b": "the store is over its limit of 8 bytes"}


def test_nothing_recent_is_deleted_however_large_the_store_is() -> None:
    inventory = Inventory(artifacts=[stored("a", 0.9, size=100)], roots=[])
    assert deletions(inventory, POLICY.model_copy(update={"max_bytes": 1})) == {}


def test_checkpoints_are_deleted_once_their_training_is_finished() -> None:
    finished = [stored("finetune-1", 5), stored("finetune-1.step00000010", 6)]
    open_ = [stored("finetune-2.step00000010", 40)]
    inventory = Inventory(
        artifacts=[*finished, *open_], roots=[RootSet(frozenset(["finetune-2"]), "an unfinished run")]
    )
    assert deletions(inventory) == {"finetune-1.step00000010": "checkpoint of a training that is finished"}


def test_a_report_retains_what_it_links_to_and_evidence_only_itself() -> None:
    engine, data = stored("engine"), stored("data")
    evidence = stored("canary-1", 60, job="canary", inputs=("engine",))
    report = stored("report-1", 60, job="report", inputs=("data",))
    assert set(deletions(Inventory(artifacts=[engine, data, evidence, report], roots=[]))) == {"engine"}
    old = [replace(one, created=ago(91)) for one in (evidence, report)]
    assert set(deletions(Inventory(artifacts=[engine, data, *old], roots=[]))) == {
        "engine",
        "data",
        "canary-1",
        "report-1",
    }


def test_a_damaged_manifest_is_a_problem_and_retains_what_it_names() -> None:
    inventory = Inventory(
        artifacts=[stored("base")], roots=[], damaged=[DamagedArtifact("x-1", 5, "x-1 is damaged: mend it", ("base",))]
    )
    plan = make_plan(inventory, POLICY, NOW)
    assert plan.deletions == ()
    assert plan.problems == ("x-1 is damaged: mend it; until then it is retained",)


def test_auxiliary_files_are_deleted_once_they_are_old_and_nothing_waits_for_them() -> None:
    def left(kind: str, path: str, days: float = 10, **more) -> AuxiliaryFiles:
        return AuxiliaryFiles(kind=kind, path=path, bytes=1, modified=ago(days), **more)

    inventory = Inventory(
        artifacts=[stored("a", 5)],
        roots=[RootSet(frozenset(["going-on"]), "an unfinished run")],
        auxiliary=[
            left("failed attempt", "a/attempts/1", artifact="a"),
            left("failed attempt", "a/attempts/2", artifact="a", days=0.5),
            left("failed attempt", "a/attempts/3", artifact="a", open=True),
            left("failed attempt", "going-on/attempts/1", artifact="going-on"),
            left("spec", "specs/a", artifact="a"),
            left("spec", "specs/gone", artifact="gone"),
            left("note of a use", "uses/a/r1", artifact="a", run="r1"),
            left("note of a use", "uses/gone/r2", artifact="gone", run="r2"),
            left("record of a run", "runs/r1.json", run="r1"),
            left("record of a run", "runs/r2.json", run="r2"),
        ],
    )
    assert set(deletions(inventory)) == {"a/attempts/1", "specs/gone", "uses/gone/r2", "runs/r2.json"}


def test_a_plan_of_an_earlier_version_is_still_read() -> None:
    plan = make_plan(Inventory(artifacts=[stored("a"), stored("b", 2)], roots=[]), POLICY, NOW)
    document = plan.model_dump(mode="json")
    for old, new in {"going": "deletions", "staying": "retained", "trouble": "problems"}.items():
        document[old] = document.pop(new)
    assert Plan.model_validate(document) == plan
