"""Which artifacts go: for any graph of them, and for each rule by itself."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from hypothesis import given, settings
from hypothesis import strategies as st

from include.retention import Damaged, Held, Leftover, Need, Plan, Policy, Stock, decide

NOW = datetime(2026, 6, 1, tzinfo=UTC)
POLICY = Policy(keep_days=30, keep_reports_days=90, min_age_hours=24)


def ago(days: float) -> datetime:
    return NOW - timedelta(days=days)


def held(name: str, days: float = 100, *, job: str = "merge", size: int = 1, **more) -> Held:
    return Held(name=name, job=job, bytes=size, made=ago(days), **more)


def going(stock: Stock, policy: Policy = POLICY) -> dict[str, str]:
    return {one.path: one.reason for one in decide(stock, policy, NOW).going}


@st.composite
def stocks(draw) -> tuple[Stock, Policy]:
    """Any graph without cycles: what a manifest names as an input was there before it, or is gone."""
    count = draw(st.integers(1, 9))
    names = [f"a-{number}" for number in range(count)]
    names = [
        f"{names[number - 1]}.step{number:08d}" if number and draw(st.integers(0, 5)) == 0 else name
        for number, name in enumerate(names)
    ]
    days = st.sampled_from([0, 0.5, 1, 2, 20, 29, 31, 60, 89, 91, 200])
    artifacts = [
        held(
            name,
            draw(days),
            job=draw(st.sampled_from(["merge", "finetune", "report", "canary"])),
            size=draw(st.integers(0, 1000)),
            inputs=tuple(draw(st.lists(st.sampled_from([*names[:number], "gone"]), max_size=3))),
            used=draw(st.none() | days.map(ago)),
        )
        for number, name in enumerate(names)
    ]
    broken = draw(st.lists(st.sampled_from(artifacts), max_size=2, unique=True))
    damaged = [Damaged(one.name, one.bytes, f"{one.name} is damaged", one.inputs) for one in broken]
    artifacts = [one for one in artifacts if one not in broken]
    needs = [
        Need(frozenset(draw(st.lists(st.sampled_from([*names, "planned"]), max_size=3))), f"need {number}")
        for number in range(draw(st.integers(0, 2)))
    ]
    leftovers = [
        Leftover(
            kind=draw(st.sampled_from(["failed attempt", "spec", "note of a use", "record of a run"])),
            path=f"left-{number}",
            bytes=draw(st.integers(0, 100)),
            newest=ago(draw(days)),
            name=draw(st.sampled_from([*names, "planned"])),
            run=draw(st.sampled_from(["r1", "r2"])),
            open=draw(st.booleans()),
        )
        for number in range(draw(st.integers(0, 4)))
    ]
    policy = POLICY.model_copy(update={"max_bytes": draw(st.none() | st.integers(1, 5000))})
    return Stock(held=artifacts, needs=needs, damaged=damaged, leftovers=leftovers), policy


def carried_out(stock: Stock, plan: Plan) -> Stock:
    gone = {one.path for one in plan.going}
    return replace(
        stock,
        held=[one for one in stock.held if one.name not in gone],
        leftovers=[one for one in stock.leftovers if one.path not in gone],
    )


def lineage(stock: Stock, names: set[str]) -> set[str]:
    made_from = {one.name: one.inputs for one in stock.held} | {one.name: one.mentions for one in stock.damaged}
    found, pending = set(), list(names)
    while pending:
        name = pending.pop()
        if name not in found:
            found.add(name)
            pending += made_from.get(name, ())
    return found


@settings(max_examples=100, deadline=None)
@given(stocks())
def test_nothing_that_is_needed_goes(case: tuple[Stock, Policy]) -> None:
    stock, policy = case
    gone = set(going(stock, policy))
    roots = {name for need in stock.needs for name in need.names} | {one.name for one in stock.damaged}
    assert not gone & lineage(stock, roots)
    for one in stock.held:
        last = max(one.made, one.used or one.made)
        young_report = one.job in ("report", "canary") and one.made > ago(90)
        assert one.name not in gone or (last <= ago(1) and not young_report)
    assert not gone & {one.path for one in stock.leftovers if one.open or one.newest > ago(1)}


@settings(max_examples=100, deadline=None)
@given(stocks())
def test_a_second_sweep_finds_nothing(case: tuple[Stock, Policy]) -> None:
    stock, policy = case
    left = carried_out(stock, decide(stock, policy, NOW))
    assert going(left, policy) == {}


@settings(max_examples=100, deadline=None)
@given(stocks())
def test_afterwards_the_store_is_within_its_limit_or_all_that_is_left_has_to_stay(case: tuple[Stock, Policy]) -> None:
    stock, policy = case
    left = carried_out(stock, decide(stock, policy, NOW))
    total = sum(one.bytes for one in (*left.held, *left.damaged, *left.leftovers))
    stays = decide(left, policy, NOW).staying
    free = f"used within the last {policy.keep_days:g} days"
    assert policy.max_bytes is None or total <= policy.max_bytes or all(one.reason != free for one in stays)


@settings(max_examples=60, deadline=None)
@given(stocks())
def test_all_is_counted_once(case: tuple[Stock, Policy]) -> None:
    stock, policy = case
    plan = decide(stock, policy, NOW)
    total = sum(one.bytes for one in (*stock.held, *stock.damaged, *stock.leftovers))
    assert plan.freed + sum(one.bytes for one in plan.staying) == total


def test_lineage_stays_whole_as_far_as_it_is_needed() -> None:
    chain = [held("base"), held("tuned", inputs=("base",)), held("merged", inputs=("tuned",)), held("other")]
    stock = Stock(held=chain, needs=[Need(frozenset(["merged"]), "live")])
    assert going(stock) == {"other": "not used for more than 30 days"}


def test_age_counts_from_the_last_use_and_making_something_is_a_use() -> None:
    data, noted = held("data"), held("noted", used=ago(3))
    stock = Stock(held=[data, noted, held("model", 5, inputs=("data",))], needs=[])
    assert going(stock) == {}


def test_the_store_is_made_to_fit_from_the_one_that_was_not_used_for_longest() -> None:
    stock = Stock(held=[held("a", 10, size=4), held("b", 20, size=4), held("c", 5, size=4)], needs=[])
    policy = POLICY.model_copy(update={"max_bytes": 8})
    assert going(stock, policy) == {"b": "the store is over its limit of 8 bytes"}


def test_nothing_young_goes_however_large_the_store_is() -> None:
    stock = Stock(held=[held("a", 0.9, size=100)], needs=[])
    assert going(stock, POLICY.model_copy(update={"max_bytes": 1})) == {}


def test_checkpoints_go_with_the_training_finished_and_stay_while_it_goes_on() -> None:
    finished = [held("finetune-1", 5), held("finetune-1.step00000010", 6)]
    open_ = [held("finetune-2.step00000010", 40)]
    stock = Stock(held=[*finished, *open_], needs=[Need(frozenset(["finetune-2"]), "a run that goes on")])
    assert going(stock) == {"finetune-1.step00000010": "checkpoint of a training that is finished"}


def test_a_report_keeps_what_it_links_to_and_evidence_only_itself() -> None:
    engine, data = held("engine"), held("data")
    evidence = held("canary-1", 60, job="canary", inputs=("engine",))
    report = held("report-1", 60, job="report", inputs=("data",))
    assert set(going(Stock(held=[engine, data, evidence, report], needs=[]))) == {"engine"}
    old = [replace(one, made=ago(91)) for one in (evidence, report)]
    assert set(going(Stock(held=[engine, data, *old], needs=[]))) == {"engine", "data", "canary-1", "report-1"}


def test_a_damaged_manifest_is_told_and_keeps_what_it_names() -> None:
    stock = Stock(held=[held("base")], needs=[], damaged=[Damaged("x-1", 5, "x-1 is damaged: mend it", ("base",))])
    plan = decide(stock, POLICY, NOW)
    assert plan.going == ()
    assert plan.trouble == ("x-1 is damaged: mend it; until then it stays",)


def test_what_is_left_over_goes_once_it_is_old_and_nobody_waits_for_it() -> None:
    def left(kind: str, path: str, days: float = 10, **more) -> Leftover:
        return Leftover(kind=kind, path=path, bytes=1, newest=ago(days), **more)

    stock = Stock(
        held=[held("a", 5)],
        needs=[Need(frozenset(["going-on"]), "a run that goes on")],
        leftovers=[
            left("failed attempt", "a/attempts/1", name="a"),
            left("failed attempt", "a/attempts/2", name="a", days=0.5),
            left("failed attempt", "a/attempts/3", name="a", open=True),
            left("failed attempt", "going-on/attempts/1", name="going-on"),
            left("spec", "specs/a", name="a"),
            left("spec", "specs/gone", name="gone"),
            left("note of a use", "uses/a/r1", name="a", run="r1"),
            left("note of a use", "uses/gone/r2", name="gone", run="r2"),
            left("record of a run", "runs/r1.json", run="r1"),
            left("record of a run", "runs/r2.json", run="r2"),
        ],
    )
    assert set(going(stock)) == {"a/attempts/1", "specs/gone", "uses/gone/r2", "runs/r2.json"}
