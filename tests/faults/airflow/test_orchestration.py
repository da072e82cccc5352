"""Whatever part of Airflow dies, or is away for a while, a run ends as it would have.

Given an Airflow on this machine, and a real `customize` on it, small enough to be watched;
when a part is SIGKILLed, a person clears or marks what runs, or store or database are away;
then each stage is committed once, no job outlives its task, and the logs can be read.
"""

from __future__ import annotations

import itertools
import json
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from include.home import PROJECT
from include.laptop import airflow as laptop
from include.laptop.components import components
from include.platforms import load_platform
from tests.faults.airflow.machine import DAG, ENDED, JOBS, Chain, Machine, kill, machine
from tests.faults.scenario import scenario
from tests.homes import own_home
from tests.processes import alive
from tests.waiting import wait_for

NUMBERS = itertools.count(1)
"""Each scenario has a data set of its own, so that nothing but the base model is reused."""

HEARTBEAT_SECONDS = 6.0
"""How soon the worker of a task hears that a person has ended it (`workers.min_heartbeat_interval`)."""


@pytest.fixture(scope="module")
def airflow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    with own_home(tmp_path_factory.mktemp("home")) as home, machine(home) as found:
        yield found


@pytest.fixture(autouse=True)
def whole_again(airflow: Machine) -> Iterator[None]:
    """Whatever a scenario left behind, the next one begins with a whole Airflow and no run."""
    yield
    airflow.up()
    for run in airflow.client.running(DAG):
        airflow.client.fail(DAG, run)
    wait_for(lambda: not airflow.job_processes(), 60, "the jobs of ended runs to be gone")


def component(name: str) -> Callable[[Machine, Chain], None]:
    def end(airflow: Machine, _: Chain) -> None:
        airflow.kill_component(name)
        airflow.up()

    return end


KILLS: dict[str, Callable[[Machine, Chain], None]] = {
    "task": lambda _, chain: kill(chain.task),
    "supervisor": lambda _, chain: kill(chain.supervisor),
    "worker": lambda _, chain: kill(chain.worker),
    **{name: component(name) for name in ("scheduler", "api-server", "triggerer", "dag-processor")},
}
LONG = {"base.config.seed": 99, "base.config.steps": 20_000}
"""A first stage of minutes, to be ended in."""

FEW = ["curate", "finetune", "register"]
"""Stages for what takes Airflow a while to notice, or to be back from: the next one may be over by then."""


def who(victim: str, then: str, stages: list[str] = JOBS) -> pytest.param:
    when = f"{victim} is SIGKILLed at {'each stage' if stages is JOBS else ', '.join(stages)}"
    name = victim.split()[-1] if "process" not in victim else victim.split()[1]
    mark = scenario(given="a run of customize", when=when, then=then)
    return pytest.param(name, stages, marks=mark, id=name)


@pytest.mark.parametrize(
    ("victim", "stages"),
    [
        who("the task process", "the stage is tried again, and each is committed once"),
        who("the job's supervisor", "the job dies with it, and the stage is tried again"),
        who("the executor's worker", "the scheduler notices within a minute, and the stage is tried again", FEW),
        who("the scheduler", "after make up the run goes on where it was", FEW),
        who("the api-server", "after make up the run goes on, and a job that ran goes on running", FEW),
        who("the triggerer", "the run does not notice", FEW),
        who("the dag-processor", "the run does not notice", FEW),
    ],
)
def test_a_killed_part(airflow: Machine, victim: str, stages: list[str], reads: Callable[[str], None]) -> None:
    seed = {"base.config.seed": 100 + next(NUMBERS)} if stages is JOBS else {}
    before = airflow.versions()
    run = airflow.customize(airflow.data(next(NUMBERS)), seed)
    hit: dict[str, Chain] = {}
    while airflow.client.run(DAG, run)["state"] not in ENDED:
        for chain in airflow.chains():
            if chain.verb in stages and chain.verb not in hit:
                hit[chain.verb] = chain
                KILLS[victim](airflow, chain)
        time.sleep(0.02)

    assert airflow.ended(run) == "success", airflow.states(run)
    assert set(hit) == set(stages)
    airflow.done_once(run)
    assert airflow.versions() == before + 1
    tries = airflow.tries(run)
    for task, number in tries.items():
        for try_number in range(1, number + 1):
            assert airflow.log(run, task, try_number), f"the log of {task}, try {try_number}, cannot be read"
    if victim in ("task", "supervisor", "worker"):
        assert tries["finetune"] == 2, tries
        reads(airflow.log(run, "finetune", 1)[-1])


@scenario(
    given="a run of customize that trains",
    when="the fine-tune's task is cleared",
    then="its job ends within the grace, another one goes on from the checkpoint, and the run ends well",
)
def test_a_task_cleared_while_it_runs(airflow: Machine) -> None:
    run = airflow.customize(airflow.data(next(NUMBERS)))
    chain = airflow.chain("finetune")
    airflow.clear(run, ["finetune"])
    wait_for(lambda: not alive(chain.job), HEARTBEAT_SECONDS + grace(), "the cleared task's job to end")
    assert airflow.ended(run) == "success", airflow.states(run)
    airflow.done_once(run)


@scenario(
    given="a run of customize that trains",
    when="the whole run is cleared",
    then="what was committed is reused, what ran is ended and begun again, and the run ends well",
)
def test_a_run_cleared_while_it_runs(airflow: Machine, reads: Callable[[str], None]) -> None:
    before = airflow.versions()
    run = airflow.customize(airflow.data(next(NUMBERS)))
    chain = airflow.chain("finetune")
    airflow.clear(run)
    wait_for(lambda: not alive(chain.job), HEARTBEAT_SECONDS + grace(), "the cleared run's job to end")
    assert airflow.ended(run) == "success", airflow.states(run)
    airflow.done_once(run)
    assert airflow.versions() == before + 1
    reused = [line for line in airflow.log(run, "curate") if line.startswith("reused artifact=")]
    assert reused
    reads(reused[0].replace(str(airflow.home), "…"))


@scenario(
    given="a run of customize that pretrains its base",
    when="the task is marked as failed",
    then="its job's process tree ends within the grace, and nothing is committed",
)
def test_a_task_marked_failed_while_its_job_runs(airflow: Machine, reads: Callable[[str], None]) -> None:
    run = airflow.customize(airflow.data(next(NUMBERS)), LONG)
    chain = airflow.chain("pretrain")
    output = spec_name(airflow, chain)
    airflow.mark(run, "base", "failed")
    wait_for(lambda: not alive(chain.job), HEARTBEAT_SECONDS + grace(), "the job to end")
    wait_for(lambda: not alive(chain.supervisor), 5, "its supervisor to end")
    assert airflow.ended(run) == "failed"
    assert airflow.store.manifest(output) is None
    assert airflow.states(run)["merge"] == "upstream_failed"
    wait_for(lambda: not airflow.job_processes(), 30, "the jobs to be gone")
    reads(airflow.log(run, "base")[-1])


@scenario(
    given="a run of customize, and Airflow's database in SQLite",
    when="a second scheduler is started beside the first",
    then="each stage is still committed once, and the run ends well",
)
def test_two_schedulers(airflow: Machine) -> None:
    before = airflow.versions()
    with (airflow.home / "second-scheduler.log").open("w") as log:
        command = [str(Path(sys.executable).parent / "airflow"), "scheduler", "--skip-serve-logs"]
        second = subprocess.Popen(
            command, cwd=PROJECT, env=laptop.environment(), stdout=log, stderr=log, start_new_session=True
        )
    try:
        wait_for(lambda: schedulers(airflow) == 2, 60, "the second scheduler")
        run = airflow.customize(airflow.data(next(NUMBERS)))
        assert airflow.ended(run) == "success", airflow.states(run)
        assert second.poll() is None, "the second scheduler ended on its own"
    finally:
        second.send_signal(signal.SIGTERM)
        second.wait(60)
    airflow.done_once(run)
    assert airflow.versions() == before + 1
    assert all(number <= 2 for number in airflow.tries(run).values()), airflow.tries(run)


@scenario(
    given="a run of customize that trains",
    when="the store's folder is away for a minute",
    then="what runs meanwhile tries again, nothing is half-committed, and the run ends well",
)
def test_the_store_is_away_for_a_minute(airflow: Machine, reads: Callable[[str], None]) -> None:
    before = airflow.versions()
    run = airflow.customize(airflow.data(next(NUMBERS)))
    airflow.chain("finetune")
    store, away = airflow.home / "store", airflow.home / "store-away"
    store.rename(away)
    time.sleep(60)
    written = store.exists()
    shutil.rmtree(store, ignore_errors=True)
    away.rename(store)
    assert not written, "something was written into a new folder of the store's name"
    assert airflow.ended(run) == "success", airflow.states(run)
    airflow.done_once(run)
    assert airflow.versions() == before + 1
    reads(airflow.sentence(run, "finetune", airflow.tries(run)["finetune"] - 1).replace(str(airflow.home), "…"))


@scenario(
    given="a run of customize with a job at work",
    when="another process holds Airflow's database for 20 seconds",
    then="no component ends, and the run ends well",
)
def test_the_database_is_locked(airflow: Machine) -> None:
    run = airflow.customize(airflow.data(next(NUMBERS)), {"base.config.seed": 100 + next(NUMBERS)})
    airflow.chain("pretrain")
    connection = sqlite3.connect(airflow.home / "airflow" / "airflow.db", isolation_level=None)
    connection.execute("begin exclusive")
    time.sleep(20)
    connection.execute("rollback")
    connection.close()
    died = [service.name for service in components() if not service.running()]
    airflow.up()
    assert airflow.ended(run) == "success", airflow.states(run)
    airflow.done_once(run)
    assert not died, f"ended while the database was locked: {died}"


@scenario(
    given="a dead scheduler",
    when="a data set arrives, under two names, and its arrival is announced again by a restarted triggerer",
    then="one run of customize starts, once the scheduler is back",
)
def test_an_arrival_announced_twice_while_the_scheduler_is_dead(airflow: Machine) -> None:
    airflow.pause(DAG)
    try:
        airflow.kill_component("scheduler")
        inbox = airflow.home / "inbox"
        inbox.mkdir(exist_ok=True)
        first = inbox / "first.jsonl"
        shutil.copy(airflow.data(next(NUMBERS)), first)
        wait_for(lambda: airflow.events("arrived_datasets") == 1, 60, "the arrival to be announced")
        # Within half a minute: the triggerer has not yet noted what it announced.
        airflow.kill_component("triggerer")
        shutil.copy(first, inbox / "second.jsonl")
        airflow.up()
        wait_for(lambda: airflow.events("arrived_datasets") >= 2, 60, "the arrival to be announced again")
        wait_for(lambda: airflow.client.run_ids("arrivals"), 60, "the announcement's run")
        wait_for(lambda: not airflow.client.running("arrivals"), 120, "the announcements to be through")
        runs = airflow.arrivals()
        assert len(runs) == 1, runs
        airflow.client.fail(DAG, runs[0])
    finally:
        airflow.pause(DAG, False)


def grace() -> float:
    """Seconds that a job's tree gets to save, and a little."""
    return load_platform("laptop").grace_seconds + 10


def spec_name(airflow: Machine, chain: Chain) -> str:
    """The name of the artifact that a job works on."""
    command = airflow.processes()[chain.job]
    spec = Path(command[command.index("--spec") + 1].removeprefix("file://"))
    return json.loads(spec.read_text())["output"]["name"]


def schedulers(airflow: Machine) -> int:
    """Scheduler jobs that Airflow's database holds for alive."""
    with sqlite3.connect(airflow.home / "airflow" / "airflow.db") as connection:
        query = "select count(*) from job where job_type = 'SchedulerJob' and state = 'running'"
        return connection.execute(query).fetchone()[0]
