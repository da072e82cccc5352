"""The order of the acts, against a stand-in for Airflow's REST API whose runs end at their second look."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from include.laptop import demo
from include.laptop.acts import Act, unexpected
from include.laptop.datasets import ALL_INTENTS, BETTER, MODEL, DataSet
from include.laptop.home import make_home
from include.laptop.watch import CUSTOMIZE, RELEASE, ROLLBACK, Run, Stage
from include.release.candidates import is_release_of, release_run_id

TASKS = {
    CUSTOMIZE: ["base", "data_quality_gate", "evaluation_gate", "register"],
    RELEASE: ["canary", "promote", "report"],
    ROLLBACK: ["rollback", "promote"],
}
OPERATORS = {
    **dict.fromkeys(("data_quality_gate", "evaluation_gate"), "GateSensor"),
    **dict.fromkeys(("canary", "rollback"), "CanaryRolloutOperator"),
}
REASONS = {
    "rotten": ("data_quality_gate", "fail: too many duplicates"),
    "poisoned": ("evaluation_gate", "fail: exact match .7 is below .8"),
    "slow": ("canary", "rolled back (drill: slow): slower"),
}


class Airflow:
    """Airflow as far as the demo speaks with it; `failing` maps a word of a run's conf to a task and its last words."""

    url = "http://127.0.0.1:1"

    def __init__(self, failing: dict[str, tuple[str, str]]) -> None:
        self.failing = failing
        self.runs: dict[str, dict[str, Any]] = {}
        self.ended_by_hand: list[tuple[str, str]] = []

    def trigger(self, dag: str, conf: dict[str, Any], run: str = "") -> dict[str, Any]:
        run = run or f"{dag}-{len(self.runs) + 1}"
        self.runs[run] = {"dag_run_id": run, "dag": dag, "conf": conf, "looks": 0, "state": "running"}
        return self.runs[run]

    def runs_on(self, dag: str, data: str, *, since: float) -> list[dict[str, Any]]:
        found = [run for run in self.runs.values() if run["dag"] == dag and run["conf"].get("data") == data]
        if not found and Path(data).parent.name == "inbox" and Path(data).exists():
            found = [self.trigger(dag, {"data": data})]
        return found

    def run_ids(self, dag: str) -> list[str]:
        """Newest first; each run of customize that succeeded has had its candidate released by now."""
        for source, run in list(self.runs.items()):
            released = any(is_release_of(name, source) for name in self.runs)
            if run["dag"] == CUSTOMIZE and run["state"] == "success" and not released:
                version = sum(found["dag"] == RELEASE for found in self.runs.values()) + 1
                self.trigger(RELEASE, {"source": source}, release_run_id(MODEL, str(version), source))
        return [name for name, run in reversed(self.runs.items()) if run["dag"] == dag]

    def running(self, dag: str) -> list[str]:
        return [name for name, run in self.runs.items() if run["dag"] == dag and run["state"] == "running"]

    def fail(self, dag: str, run: str) -> None:
        self.ended_by_hand.append((dag, run))

    def tasks(self, dag: str) -> list[str]:
        return TASKS[dag]

    def run(self, dag: str, run: str) -> dict[str, Any]:
        if demo.up.traffic_counts().exists():
            count_traffic(json.loads(demo.up.traffic_counts().read_text())["sent"] + 10)
        record = self.runs[run]
        record["looks"] += 1
        if record["looks"] > 1:
            record["state"] = "failed" if self._failure(run) else "success"
        return {**record, "start_date": None, "end_date": None}

    def task_instances(self, dag: str, run: str) -> list[dict[str, Any]]:
        failure, ended = self._failure(run), self.runs[run]["looks"] > 1
        common = {"start_date": None, "end_date": None, "try_number": 1}
        return [
            {
                "task_id": task,
                "operator": OPERATORS.get(task, "LocalJobOperator"),
                "state": ("failed" if failure and task == failure[0] else "success") if ended else "running",
                **common,
            }
            for task in TASKS[dag]
        ]

    def log(self, dag: str, run: str, task: str, try_number: int) -> list[dict[str, Any]]:
        failure = self._failure(run)
        return [{"event": "failed", "error_detail": [{"exc_value": failure[1]}]}] if failure else []

    def xcom(self, dag: str, run: str, task: str, key: str = "return_value") -> dict[str, str]:
        candidates = [name for name, found in self.runs.items() if found["dag"] == RELEASE]
        return {"version": str(candidates.index(run) + 1)}

    def _failure(self, run: str) -> tuple[str, str] | None:
        conf = str(self.runs[run]["conf"])
        return next((failure for word, failure in self.failing.items() if word in conf), None)


def count_traffic(answered: int) -> None:
    """What the generator leaves, as long as it lives."""
    demo.up.traffic_counts().parent.mkdir(parents=True, exist_ok=True)
    demo.up.traffic_counts().write_text(json.dumps({"sent": answered, "answered": answered, "failed": 0}))


@pytest.fixture(autouse=True)
def one_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """No processes here: data sets are empty files, and what would start or ask others is written down."""
    monkeypatch.setenv("ANEMONE_HOME", str(tmp_path / "home"))
    make_home()
    done: list[object] = []

    def write(data: DataSet) -> None:
        data.path.parent.mkdir(exist_ok=True)
        data.path.touch()

    monkeypatch.setattr(demo, "_write", write)
    monkeypatch.setattr(demo, "POLL_SECONDS", 0)
    monkeypatch.setattr(demo, "ask", lambda question, model: done.append(("asked", model)) or "kubectl logs")
    monkeypatch.setattr(demo.laptop, "check_alive", lambda: None)

    def start_traffic(rate: float) -> None:
        count_traffic(0)
        done.append(("traffic", rate))

    monkeypatch.setattr(demo.up, "start_traffic", start_traffic)
    monkeypatch.setattr(demo.up, "stop_traffic", lambda: done.append("no traffic"))
    return done


def played(airflow: Airflow) -> demo.Performance:
    performance = demo.Performance(Console(file=io.StringIO()), airflow)
    performance.play()
    return performance


def test_all_acts_in_their_order(one_machine: list[object]) -> None:
    airflow = Airflow(REASONS)
    acts = played(airflow).acts
    assert [act.title for act in acts] == [
        "good",
        "rotten",
        "poisoned",
        "first release",
        "better",
        "better release",
        "bad release",
        "rollback",
        "forward again",
    ]
    assert unexpected(acts) == []
    confs = [airflow.runs[act.run.run_id]["conf"] for act in acts]
    assert confs[3] == {"source": acts[0].run.run_id}
    assert confs[4]["overrides"]["heldout.config"]["intents"] == list(ALL_INTENTS)
    assert confs[5] == {"source": acts[4].run.run_id}
    assert confs[6:] == [{"version": "2", "drill": "slow"}, {"version": "1"}, {"version": "2"}]
    assert one_machine == [("asked", MODEL), ("traffic", demo.TRAFFIC_RATE), "no traffic"]


@pytest.mark.parametrize(
    ("failing", "last"),
    [
        ({"inbox/good": ("evaluation_gate", "fail: 1")}, "poisoned"),
        ({"customize-1": ("canary", "refused: no engine")}, "first release"),
        ({"data/better": ("evaluation_gate", "fail: not better")}, "better"),
    ],
)
def test_what_went_wrong_ends_the_play_there(
    failing: dict[str, tuple[str, str]], last: str, one_machine: list[object]
) -> None:
    acts = played(Airflow({**REASONS, **failing})).acts
    assert acts[-1].title == last
    assert all(act.run.ended for act in acts)
    (sentence,) = unexpected(acts)
    assert next(iter(failing.values()))[1] in sentence
    assert ("traffic", demo.TRAFFIC_RATE) not in one_machine


def test_a_bad_release_that_is_promoted_is_an_error_and_the_traffic_still_ends(one_machine: list[object]) -> None:
    acts = played(Airflow({word: reason for word, reason in REASONS.items() if word != "slow"})).acts
    assert acts[-1].title == "bad release"
    assert unexpected(acts) == ["the act 'bad release' should be stopped by canary, but its run ended as success"]
    assert one_machine[-1] == "no traffic"


@pytest.mark.parametrize(
    ("counted", "says"),
    [
        ({"sent": 90, "answered": 90, "failed": 0}, None),
        ({"sent": 90, "answered": 88, "failed": 2}, "the act 'rollback' lost 2 requests of the traffic"),
        ({"sent": 0, "answered": 0, "failed": 0}, "no request of the traffic was answered during the act 'rollback'"),
        ({}, None),
    ],
)
def test_an_act_under_traffic_needs_answers(counted: dict[str, int], says: str | None) -> None:
    act = Act(Run("rollback", ROLLBACK, state="success"), lambda: None, traffic=counted)
    assert act.problem is None if says is None else says in str(act.problem)


@pytest.mark.parametrize(
    ("stages", "decided", "says"),
    [
        ({"promote": "running", "report": None}, False, "ended as running"),
        ({"promote": "success", "report": "running"}, True, None),
        ({"promote": "failed", "report": "running"}, True, "ended in promote"),
    ],
)
def test_a_release_is_decided_before_it_is_reported(
    stages: dict[str, str | None], decided: bool, says: str | None
) -> None:
    run = Run("release", RELEASE, state="running", stages=[Stage(task, state) for task, state in stages.items()])
    act = Act(run, lambda: None, succeeds_with="promote")
    assert act.decided is decided
    assert act.problem is None if says is None else says in str(act.problem)
    run.state = "failed"
    assert act.decided
    assert act.problem is not None


def test_a_generator_that_died_proves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo.up, "start_traffic", lambda rate: None)
    acts = played(Airflow(REASONS)).acts
    assert acts[-1].title == "better release"
    (sentence,) = unexpected(acts)
    assert sentence.startswith("no request of the traffic was answered during the act 'better release'")


def test_what_an_earlier_demo_left_going_on_is_ended_first() -> None:
    airflow = Airflow({})
    for dag, conf in (
        (RELEASE, {"version": "2"}),
        (CUSTOMIZE, {"data": str(BETTER.path)}),
        (CUSTOMIZE, {"data": "/x"}),
    ):
        airflow.trigger(dag, conf)
    said: list[str] = []
    demo.reset(airflow, said.append)
    assert airflow.ended_by_hand == [(RELEASE, "release-1"), (CUSTOMIZE, "customize-2")]
    assert len(said) == 2
