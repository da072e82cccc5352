# ruff: noqa: F811
"""Retention while things die, do not answer, or change meanwhile."""

from __future__ import annotations

import json
import random
import signal
import sqlite3
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest

from include.artifacts.uses import Run
from include.retention import Plan
from jobs.serving.canary.state.records import Records
from tests.faults.scenario import scenario
from tests.jobs.retention.conftest import MODEL, World, world  # noqa: F401

RUN = Run(dag_id="customize", run_id="manual__2026-01-01T00:00:00+00:00")
LINEAGE = ("base-1", "curate-1", "finetune-1", "merge-1", "evaluate-1")


def full_world(world: World) -> None:
    """A champion with its lineage, two engines, and an old attempt at something better that came to nothing."""
    world.make("base-1", age=200)
    world.make("curate-1", age=150)
    world.make("finetune-1", age=150, inputs=["base-1", "curate-1"])
    world.make("merge-1", age=150, inputs=["finetune-1"])
    world.make("evaluate-1", age=150, inputs=["merge-1"])
    world.make("register-1", age=150, inputs=["merge-1"], job="register")
    for engine in ("engine-1", "engine-2"):
        world.make(engine, age=100, inputs=["merge-1"])
    world.make("curate-9", age=90)
    world.make("merge-9", age=90, inputs=["curate-9"])
    version = world.register("merge-1", "curate-1", "evaluate-1")
    world.client.set_registered_model_alias(MODEL, "champion", version)
    world.go_live("engine-1", "engine-2")


KEPT = {*LINEAGE, "register-1", "engine-1", "engine-2"}


@scenario(
    given="a store with a champion, its way back, and old work that came to nothing",
    when="a plan is made and carried out",
    then="only what nothing needs is gone, and a second sweep finds nothing",
)
def test_only_what_nothing_needs_goes(world: World) -> None:
    full_world(world)
    _, plan = world.plan()
    assert world.names() == KEPT | {"curate-9", "merge-9"}, "a plan deletes nothing"
    assert {one.path for one in world.sweep().deletions} == {one.path for one in plan.deletions}
    assert world.names() == KEPT
    assert world.plan()[1].deletions == ()


@scenario(
    given="a plan of forty artifacts",
    when="the sweep is SIGKILLed at 8 random moments",
    then="each artifact is whole or not there, and the next sweep leaves nothing of the rest",
)
@pytest.mark.parametrize("seed", range(2))
def test_a_killed_sweep_leaves_the_store_whole(seed: int, world: World) -> None:
    full_world(world)
    for number in range(40):
        world.make(f"ingest-{number}", age=60, size=100_000)
    chance = random.Random(seed)
    for _ in range(4):
        name, plan = world.plan()
        process, _ = world.start(name)
        assert process.stdout is not None
        ends = iter(process.stdout)
        for _ in range(chance.randrange(1, 10)):
            next(line for line in ends if line.startswith("deleted"))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        left = world.names()
        assert left >= KEPT
        assert left < {one.path for one in plan.deletions} | KEPT
    world.sweep()
    assert world.names() == KEPT
    # Killed after an artifact's files and before their folders, a sweep leaves empty ones, which another attempt at the
    # artifact may use at any time.
    left = {path.name for path in world.path.iterdir() if any(below.is_file() for below in path.rglob("*"))}
    assert left <= KEPT | {"specs", "uses", "runs"} | {path.name for path in world.path.glob("retention-*")}


@scenario(
    given="a plan that says an artifact goes",
    when="a run takes it as input before the sweep",
    then="it stays, and the sweep says so",
)
def test_what_is_used_meanwhile_stays(world: World, reads: Callable[[str], None]) -> None:
    full_world(world)
    name, _ = world.plan()
    world.noted_by(RUN, "curate-9")
    done = world.run(name)
    assert world.names() == KEPT | {"curate-9"}
    (spared,) = world.spared(done.name)
    assert spared["path"] == "curate-9"
    reads(f"{spared['path']} is retained: {spared['reason']}")


@scenario(
    given="a run that goes on, and last used its artifacts a week ago",
    when="the store is far above its limit",
    then="nothing that it planned or made goes, its training's checkpoints neither",
)
def test_what_a_run_needs_stays_however_full_it_is(world: World) -> None:
    full_world(world)
    world.make("finetune-7.step00000010", age=6)
    world.noted_by(RUN, "curate-9", "finetune-7", age=7)
    policy = {"policy": {"keep_days": 5, "max_bytes": 1}}
    world.sweep(**policy, unfinished_runs=[RUN])
    assert world.names() == KEPT | {"curate-9", "finetune-7.step00000010"}
    world.sweep(**policy)
    assert world.names() == KEPT


@scenario(
    given="a release that was live before, and the controller's records",
    when="the store is far above its limit while the controller is down",
    then="its engine stays for the rollback, as far back as the policy says",
)
def test_the_way_back_stays(world: World) -> None:
    full_world(world)
    for number in (3, 4, 5):
        world.make(f"engine-{number}", age=100)
    world.go_live("engine-1", "engine-2", "engine-3", "engine-4", "engine-5")
    world.sweep(policy={"max_bytes": 1, "keep_previous": 3})
    assert {name for name in world.names() if name.startswith("engine-")} == {f"engine-{n}" for n in (1, 2, 3, 4)}


NOTHING_GOES = "nothing goes, in one sentence"


@pytest.mark.parametrize(
    ("trouble", "code", "says"),
    [
        pytest.param(
            "locked",
            75,
            "database is locked",
            marks=scenario(given="a plan to carry out", when="MLflow's database is held", then=NOTHING_GOES),
        ),
        pytest.param(
            "another",
            64,
            "MLflow knows no model kubectl, which was registered from",
            marks=scenario(given="a plan to carry out", when="MLflow's database was lost", then=NOTHING_GOES),
        ),
        pytest.param(
            "controller",
            75,
            "the canary controller does not answer",
            marks=scenario(given="a plan to carry out", when="the controller runs and answers not", then=NOTHING_GOES),
        ),
        pytest.param(
            "old",
            64,
            "minutes ago, and only one of the last 60 is carried out",
            marks=scenario(given="a plan to carry out", when="it is older than an hour", then=NOTHING_GOES),
        ),
    ],
)
def test_nothing_goes_where_somebody_cannot_be_asked(
    trouble: str,
    code: int,
    says: str,
    world: World,
    reads: Callable[[str], None],
) -> None:
    full_world(world)
    name, plan = world.plan()
    before = world.names()
    mlflow = world.mlflow
    held = sqlite3.connect(mlflow.removeprefix("sqlite:///"), isolation_level=None)
    controller = Records(world.folder / "canary")
    if trouble == "locked":
        held.execute("BEGIN EXCLUSIVE")
        mlflow += "?timeout=0"
    elif trouble == "another":
        mlflow = f"sqlite:///{world.folder}/lost.db"
    elif trouble == "controller":
        controller.lock()
    else:
        name = "retention-old"
        old = plan.model_copy(update={"made": datetime.now(UTC) - timedelta(minutes=61)})
        _commit_plan(world, name, old)
    try:
        done = world.run(name, expect=code, mlflow=mlflow)
    finally:
        held.close()
        controller.close()
    assert says in done.error
    assert done.error.count("\n") == 0
    assert world.names() == before
    reads(done.error.replace(f"{world.folder}/", ""))


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(
            lambda text: text[: len(text) - 20],
            marks=scenario(
                given="an old artifact with a manifest that was cut short",
                when="retention runs",
                then="it stays, so does what it was made from, and the plan says what to do",
            ),
        ),
        pytest.param(
            lambda text: json.dumps(json.loads(text) | {"schema_version": 99}),
            marks=scenario(
                given="an old artifact of a newer Anemone",
                when="retention runs",
                then="it stays, so does what it was made from, and the plan says what to do",
            ),
        ),
    ],
)
def test_what_cannot_be_read_is_not_deleted_by_guess(
    damage: Callable[[str], str],
    world: World,
    reads: Callable[[str], None],
) -> None:
    full_world(world)
    manifest = world.path / "merge-9" / "manifest.json"
    manifest.write_text(damage(manifest.read_text()))
    world.age("merge-9", 90)
    _, plan = world.plan()
    (sentence,) = plan.problems
    assert "merge-9/manifest.json" in sentence
    world.sweep()
    assert manifest.is_file()
    assert (world.path / "curate-9" / "manifest.json").is_file()
    reads(sentence.replace(f"{world.folder}/", ""))


@scenario(
    given="two attempts of yesterday's that no manifest points to",
    when="a living job still holds one of them",
    then="that one stays, and the dead job's goes",
)
def test_a_living_jobs_attempt_stays(world: World) -> None:
    full_world(world)
    living, dead = world.store.attempt("finetune-3"), world.store.attempt("finetune-4")
    for attempt in (living, dead):
        (attempt.files / "weights").write_bytes(b"w" * 1000)
        attempt.events.touch()
        world.age(attempt.name, 3)
    with living.events.open("a"):
        world.sweep()
    assert living.files.is_dir()
    assert not (world.path / "finetune-4").exists()


def _commit_plan(world: World, name: str, plan: Plan) -> None:
    manifest = world.store.manifest(world.plan()[0])
    assert manifest is not None
    with world.store.attempt(name) as attempt:
        (attempt.files / "plan.json").write_text(plan.model_dump_json())
        attempt.commit(job="retention", code="0", provenance=manifest.provenance)
