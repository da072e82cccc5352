"""Whatever is announced gets its one run, however many come at once, and whoever is away meanwhile.

Given an Airflow on this machine with the project's own DAGs `arrivals` and `candidates`, and with a `customize` and a
`release` that do nothing; when data sets and candidates come; then each has one run, at once or when who was away is
back, without another event.
"""

from __future__ import annotations

import itertools
import json
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from include.artifacts.manifest import Provenance
from include.home import PROJECT
from include.laptop import airflow as laptop
from include.laptop.rest import wait_for_dag
from tests.faults.airflow.machine import DAG, Machine
from tests.faults.scenario import scenario
from tests.homes import own_home
from tests.waiting import wait_for

DAGS = '''
from pathlib import Path
from time import sleep
from types import SimpleNamespace

from airflow.sdk import Param, dag, task

from include.home import home
from operators import CANDIDATE
from operators.job import JobOperator
from operators.store import store_of


@dag(schedule=None, max_active_runs=2, params={"data": Param(None, type=["null", "string"])})
def customize():
    @task
    def wait():
        while (home() / "hold").exists():
            sleep(0.1)

    wait()


@dag(schedule=None)
def release():
    @task
    def nothing():
        pass

    nothing()


class Announce(JobOperator):
    """What every operator of a job does with what the job made."""

    def execute(self, context):
        store, name = store_of(context["params"]["artifact"])
        return self.announce(context, SimpleNamespace(uri=store.uri(name)), store.manifest(name))


@dag(schedule=None, params={"artifact": Param("", type="string")})
def registers():
    Announce(task_id="register", section=None, outlets=[CANDIDATE])


customize()
release()
registers()
'''
"""The DAGs between which announcements go, without their work."""

AT_ONCE_SECONDS = 120
"""For all of them; a quiet machine needs a few. The clock, which ticks every five minutes, can hardly help."""

CLOCK_SECONDS = 400
"""Until the clock's next tick, or until the watcher is back: Airflow stops it where a DAG is paused as it is parsed."""

NUMBERS = itertools.count(1)
"""Nothing arrives twice, unless a scenario says so."""


@pytest.fixture(scope="module")
def airflow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    folder = tmp_path_factory.mktemp("home")
    dags = folder / "dags"
    dags.mkdir()
    for name in ("arrivals", "candidates"):
        shutil.copy(PROJECT / "dags" / f"{name}.py", dags)
    (dags / "between.py").write_text(DAGS)
    with own_home(folder, ANEMONE_DAGS=str(dags)) as home:
        laptop.up()
        found = Machine(home)
        for name in ("arrivals", "candidates", "customize", "release", "registers"):
            wait_for_dag(found.client, name, timeout=120)
        # Until the watcher of the folder runs, a file waits for it and not for what is tested here.
        files = put(found, 1)
        wait_for(lambda: started_on(found, DAG, "data", files), 300, "the first run")
        yield found


@pytest.fixture(autouse=True)
def nothing_waits(airflow: Machine) -> Iterator[None]:
    """What is put in a scenario is counted from here; the next one finds everything running, and nothing queued."""
    (airflow.home / "hold").unlink(missing_ok=True)
    wait_for(lambda: not airflow.client.running("arrivals"), 120, "earlier passes to be through")
    yield
    (airflow.home / "hold").unlink(missing_ok=True)
    airflow.up()
    for dag in ("arrivals", "candidates"):
        airflow.pause(dag, False)
    wait_for(lambda: not airflow.client.running(DAG), 300, "the runs to end")


def put(airflow: Machine, count: int) -> list[str]:
    """Put data sets into the inbox at one instant; returns their paths, sorted."""
    inbox = airflow.home / "inbox"
    draft = airflow.home / "draft"
    draft.mkdir()
    for number in itertools.islice(NUMBERS, count):
        (draft / f"{number}.jsonl").write_text(json.dumps({"prompt": str(number), "completion": "x"}) + "\n")
    names = [path.name for path in draft.iterdir()]
    for name in names:
        (draft / name).rename(inbox / name)
    draft.rmdir()
    return sorted(str(inbox / name) for name in names)


def started_on(airflow: Machine, dag: str, key: str, values: list[str]) -> list[str]:
    """For which of the values, sorted, a run exists, as often as one does: there may be hundreds of runs."""
    with sqlite3.connect(airflow.home / "airflow" / "airflow.db", timeout=60) as connection:
        rows = connection.execute("select conf from dag_run where dag_id = ?", [dag]).fetchall()
    found = [json.loads(conf).get(key) for (conf,) in rows if conf]
    return sorted(value for value in found if value in values)


def each_has_one(airflow: Machine, files: list[str], seconds: float = AT_ONCE_SECONDS) -> None:
    """Wait for the runs of `files`, and until nothing could start another one."""
    wait_for(
        lambda: len(set(started_on(airflow, DAG, "data", files))) == len(files),
        seconds,
        lambda: f"{len(files)} runs: {len(started_on(airflow, DAG, 'data', files))} came",
    )
    wait_for(lambda: not airflow.client.running("arrivals"), 60, "the passes to end")
    assert started_on(airflow, DAG, "data", files) == files


def each_is_released(airflow: Machine, registrations: list[tuple[str, str]], seconds: float = AT_ONCE_SECONDS) -> None:
    """The same of the releases of registered versions."""
    versions = sorted(version for _, version in registrations)
    wait_for(
        lambda: started_on(airflow, "release", "version", versions) == versions,
        seconds,
        lambda: f"releases of {versions}: {started_on(airflow, 'release', 'version', versions)} came",
    )
    wait_for(lambda: not airflow.client.running("candidates"), 60, "the passes to end")
    assert started_on(airflow, "release", "version", versions) == versions


@pytest.mark.parametrize(
    "count",
    [
        pytest.param(
            count,
            marks=scenario(
                given="an Airflow that watches the inbox",
                when=f"{count} data set{'s arrive at one instant' if count > 1 else ' arrives'}",
                then="each has its one run at once, without another event",
            ),
        )
        for count in (1, 5, 50)
    ],
)
def test_all_that_arrive_at_one_instant(airflow: Machine, count: int) -> None:
    each_has_one(airflow, put(airflow, count))


@pytest.mark.parametrize(
    "component",
    [
        pytest.param(
            name,
            marks=scenario(
                given=f"a dead {name}",
                when="five data sets arrive at one instant",
                then=then,
            ),
        )
        for name, then in (
            ("scheduler", "each has its one run once the scheduler is back"),
            ("triggerer", "each has its one run once the triggerer is back"),
            ("dag-processor", "each has its one run at once"),
        )
    ],
)
def test_arrivals_while_a_component_is_dead(airflow: Machine, component: str) -> None:
    airflow.kill_component(component)
    before = airflow.events("arrived_datasets")
    files = put(airflow, 5)
    if component == "scheduler":
        wait_for(lambda: airflow.events("arrived_datasets") >= before + 5, 60, "the arrivals to be announced")
    if component != "dag-processor":
        airflow.up()
    each_has_one(airflow, files)


@scenario(
    given="five data sets that have just been announced, and a dead scheduler",
    when="the triggerer is SIGKILLed, and both are started again",
    then="each has its one run",
)
def test_a_triggerer_killed_after_the_announcement(airflow: Machine) -> None:
    airflow.kill_component("scheduler")
    before = airflow.events("arrived_datasets")
    files = put(airflow, 5)
    wait_for(lambda: airflow.events("arrived_datasets") > before, 60, "the first event", every=0.01)
    airflow.kill_component("triggerer")
    airflow.up()
    each_has_one(airflow, files)


@scenario(
    given="the DAGs arrivals and candidates, which are paused",
    when="five data sets arrive, two candidates are announced, and both DAGs are unpaused",
    then="each has its one run within the five minutes of the clock, without another event",
)
def test_announcements_while_the_dags_are_paused(airflow: Machine) -> None:
    for dag in ("arrivals", "candidates"):
        airflow.pause(dag)
    files = put(airflow, 5)
    registrations = [register(airflow, next(NUMBERS)) for _ in range(2)]
    for uri, _ in registrations:
        airflow.client.trigger("registers", {"artifact": uri})
    wait_for(lambda: airflow.client.running("registers"), 60, "the candidates' runs")
    wait_for(lambda: not airflow.client.running("registers"), 120, "the candidates to be announced")
    for dag in ("arrivals", "candidates"):
        airflow.pause(dag, False)
    each_has_one(airflow, files, CLOCK_SECONDS)
    each_is_released(airflow, registrations, CLOCK_SECONDS)


@scenario(
    given="a customize with as many active runs as it may have",
    when="five data sets arrive at one instant",
    then="each has its one run, which waits for its turn",
)
def test_arrivals_while_no_further_run_may_begin(airflow: Machine) -> None:
    (airflow.home / "hold").touch()
    first = put(airflow, 2)
    wait_for(lambda: running(airflow) == 2, 120, "two active runs")
    files = put(airflow, 5)
    each_has_one(airflow, files)
    assert running(airflow) == 2
    (airflow.home / "hold").unlink()
    wait_for(lambda: not airflow.client.running(DAG), 300, "the runs to end")
    ended = [run for path in (*first, *files) for run in airflow.client.runs_on(DAG, path, since=0)]
    assert [run["state"] for run in ended] == ["success"] * 7


@scenario(
    given="a data set whose run has ended, and was deleted in the web UI",
    when="it arrives again under another name, and its event is sent again",
    then="no run starts",
)
def test_a_deleted_run_is_not_started_again(airflow: Machine) -> None:
    (file,) = files = put(airflow, 1)
    each_has_one(airflow, files)
    (run,) = airflow.client.runs_on(DAG, file, since=0)
    wait_for(lambda: not airflow.client.running(DAG), 120, "the run to end")
    airflow.client._send("DELETE", f"/api/v2/dags/{DAG}/dagRuns/{run['dag_run_id']}", accept=(204,))
    again = str(Path(file).with_name("again.jsonl"))
    shutil.copy(file, again)
    asset, payload = newest_event(airflow, "arrived_datasets", file)
    send(airflow, asset, payload)
    other = put(airflow, 1)
    each_has_one(airflow, other)
    assert started_on(airflow, DAG, "data", [file, again]) == []


@pytest.mark.parametrize(
    "by",
    [
        pytest.param(
            by,
            marks=scenario(
                given="an Airflow that releases candidates",
                when=f"two are announced within a tenth of a second, by {by}",
                then="each has its one release at once",
            ),
        )
        for by in ("the tasks that registered them", "the REST API")
    ],
)
def test_two_candidates_at_one_instant(airflow: Machine, by: str) -> None:
    registrations = [register(airflow, next(NUMBERS)) for _ in range(2)]
    if by == "the REST API":
        asset = airflow.client._get("/api/v2/assets", name_pattern="candidate")["assets"][0]["id"]
        for uri, _ in registrations:
            send(airflow, asset, {"artifact": uri, "metrics": {}})
    else:
        # Both wait in the queue of a paused DAG, and begin together.
        airflow.pause("registers")
        for uri, _ in registrations:
            airflow.client.trigger("registers", {"artifact": uri})
        airflow.pause("registers", False)
    each_is_released(airflow, registrations)


@scenario(
    given="two candidates, of which one's registration is gone from the store",
    when="both are announced",
    then="the other is released, and the pass says what was set aside",
)
def test_a_candidate_that_is_gone_keeps_none_of_the_others(airflow: Machine, reads: Callable[[str], None]) -> None:
    (gone, lost), (sound, version) = (register(airflow, next(NUMBERS)) for _ in range(2))
    airflow.pause("candidates")
    earlier = set(airflow.client.run_ids("candidates")) - set(airflow.client.running("candidates"))
    for uri in (gone, sound):
        airflow.client.trigger("registers", {"artifact": uri})
    wait_for(lambda: not airflow.client.running("registers"), 60, "both to be announced")
    shutil.rmtree(airflow.home / "store" / gone.rpartition("/")[2])
    run = airflow.client.trigger("candidates", {})["dag_run_id"]
    airflow.pause("candidates", False)
    wait_for(lambda: started_on(airflow, "release", "version", [lost, version]) == [version], 60, "the other's release")
    aside = airflow.home / "store" / "announced" / "candidate" / "refused"
    wait_for(lambda: list(aside.glob("*.json")), 60, "what is gone to be set aside")
    # The clock's pass may come before the one that was asked for.
    passes = {one for one in airflow.client.run_ids("candidates") if one not in earlier} | {run}
    ends = {one: airflow.ended(one, 120, "candidates") for one in passes}
    (refused,) = (one for one, state in ends.items() if state == "failed")
    message = airflow.sentence(refused, "start_release", dag="candidates")
    assert gone in message and next(aside.glob("*.json")).name in message
    reads(message.replace(str(airflow.home), "…"))


def running(airflow: Machine) -> int:
    path = f"/api/v2/dags/{DAG}/dagRuns"
    return airflow.client._get(path, state=["running"])["total_entries"]


def newest_event(airflow: Machine, asset: str, source: str) -> tuple[int, dict[str, Any]]:
    """The asset's id, and what the event said that announced a file."""
    with sqlite3.connect(airflow.home / "airflow" / "airflow.db", timeout=60) as connection:
        query = (
            "select asset_id, asset_event.extra from asset_event join asset on asset.id = asset_id where asset.name = ?"
        )
        rows = connection.execute(query, [asset]).fetchall()
    return next((number, json.loads(extra)) for number, extra in reversed(rows) if source in extra)


def send(airflow: Machine, asset: int, extra: dict[str, Any]) -> None:
    airflow.client._send("POST", "/api/v2/assets/events", json={"asset_id": asset, "extra": extra})


def register(airflow: Machine, number: int) -> tuple[str, str]:
    """What the job `register` leaves; returns its URI and the version."""
    now = datetime.now(UTC)
    provenance = Provenance(
        started=now, finished=now, wall_seconds=0, cpu_seconds=0, peak_rss_bytes=0, host="test", python="3"
    )
    name, version = f"register-{number:020x}", str(number)
    with airflow.store.attempt(name) as attempt:
        (attempt.files / "candidate.json").write_text(json.dumps({"model": "kubectl", "version": version}))
        config = {"model": "kubectl", "recipe": "demo/0.8M_lora_cpu", "run_id": "r"}
        attempt.commit(job="register", code="0", provenance=provenance, config=config)
    return airflow.store.uri(name), version
