from __future__ import annotations

import io

import pytest
from rich.console import Console

from include.laptop.acts import Act, unexpected
from include.laptop.report import print_report
from include.laptop.screen import Screen
from include.laptop.watch import CUSTOMIZE, RELEASE, Run, Stage

CANARY = "CanaryRolloutOperator"
LOG = [
    {"event": "::group::Log message source details"},
    {"event": "DAG bundles loaded: dags-folder", "level": "info"},
    {"event": "training step=10 loss=2.5 progress=0.1", "level": "info"},
    {"event": "training step=50 loss=0.31 learning_rate=0.003 progress=0.5", "level": "info"},
    {"event": "saved checkpoint=file:///store/run.step50", "level": "info"},
]


def run_with(*stages: Stage, state: str = "failed", title: str = "good", dag: str = CUSTOMIZE) -> Run:
    return Run(title, dag, run_id="r", state=state, stages=list(stages))


def test_progress_and_newest_numbers_come_from_the_log() -> None:
    stage = Stage("finetune", state="running")
    stage.read(LOG)
    assert stage.progress == 0.5
    assert stage.latest == {"step": "50", "loss": "0.31", "learning_rate": "0.003"}
    assert not stage.reused
    assert stage.error == ""


def test_a_retry_starts_from_nothing() -> None:
    stage = Stage("finetune", state="running")
    stage.read(LOG)
    stage.read(LOG[:2])
    assert (stage.progress, stage.latest, stage.figures) == (None, {}, {})


def test_the_reason_is_the_last_exception_on_one_line() -> None:
    stage = Stage("evaluation_gate", state="failed")
    detail = [{"exc_type": "AirflowFailException", "exc_value": "fail: exact match\n.725 is below .800"}]
    stage.read([{"event": "tuned_exact_match=0.725"}, {"event": "Task failed", "error_detail": detail}])
    assert stage.error == "fail: exact match .725 is below .800"
    assert stage.figures == {"tuned_exact_match": "0.725"}


def test_reuse_is_seen() -> None:
    stage = Stage("base", state="success")
    stage.read([{"event": "reused artifact=file:///store/pretrain-1 (made before)"}])
    assert stage.reused


def test_plain_lines_come_once_a_change() -> None:
    output = io.StringIO()
    stage = Stage("finetune", state="running", seconds=3.2)
    run = run_with(stage, state="running")
    with Screen(Console(file=output, width=200, highlight=False), [run]) as screen:
        screen.show()
        screen.show()
        stage.state, stage.latest = "success", {"loss": "0.04"}
        screen.show()
        screen.show()
    assert output.getvalue().splitlines() == [
        "good  running",
        "good  finetune  running  3 s",
        "good  finetune  success  3 s  loss=0.04",
    ]


def test_a_terminal_shows_every_stage_of_every_run() -> None:
    output = io.StringIO()
    runs = [
        run_with(Stage("base", "success", reused=True), Stage("finetune", "running", progress=0.4), state="running"),
        run_with(Stage("data_quality_gate", "failed"), Stage("finetune", "upstream_failed"), title="rotten"),
    ]
    with Screen(Console(file=output, width=120, force_terminal=True, color_system=None), runs) as screen:
        screen.show()
    text = output.getvalue()
    assert "↺ ▶" in text
    assert "✗ –" in text
    assert "stopped by data_quality_gate" in text
    assert "40%" in text


def test_a_release_is_live_where_a_candidate_is_registered() -> None:
    output = io.StringIO()
    runs = [
        run_with(Stage("register", "success"), state="success"),
        run_with(Stage("canary", "success", CANARY), state="success", title="first release", dag=RELEASE),
        run_with(Stage("canary", "deferred", CANARY), state="running", title="better release", dag=RELEASE),
    ]
    with Screen(Console(file=output, width=120, force_terminal=True, color_system=None), runs) as screen:
        screen.show()
    good, first, better = output.getvalue().splitlines()[1:4]
    assert "registered" in good
    assert "live" in first
    assert "canary" in better


class Airflow:
    """As far as the table at the end asks it."""

    url = "http://airflow"

    def run_url(self, dag: str, run: str) -> str:
        return f"{self.url}/dags/{dag}/runs/{run}"

    def xcom(self, dag: str, run: str, task: str, key: str = "return_value") -> object:
        return {"version": "3", "release": "kubectl-v3"} if (task, key) == ("canary", "return_value") else None


def told(run: Run) -> str:
    output = io.StringIO()
    print_report(Console(file=output, width=200), Airflow(), [run])
    return output.getvalue()


def test_what_came_out_of_any_dag_is_told_by_its_own_tasks() -> None:
    gate = Stage("teacher_gate", "success", "GateSensor", figures={"loss_ratio": "0.51234", "kept": "200"})
    lines = told(run_with(Stage("distill", "success"), gate, state="success", title="mine", dag="distill"))
    assert "passed every gate" in lines and "candidate" not in lines
    assert "loss_ratio 0.512 · kept 200" in lines
    assert "succeeded" in told(run_with(Stage("plan", "success"), state="success", dag="mine"))


def test_what_came_out_of_the_houses_own_dags_is_told() -> None:
    gate = Stage("evaluation_gate", "success", "GateSensor", figures={"gain": "0.9", "tuned_exact_match": "0.95"})
    stages = (Stage("evaluate", "success"), gate, Stage("register", "success"))
    good = told(run_with(*stages, state="success"))
    assert "passed every gate; registered as a candidate" in good
    assert "tuned_exact_match 0.950 · gain 0.900" in good
    canary = Stage("canary", "success", CANARY, figures={"canary_failed": "0", "step": "2"})
    live = told(run_with(canary, state="success", dag=RELEASE))
    assert "live: version 3, as kubectl-v3" in live and "canary_failed 0" in live and "step 2" not in live


def act(run: Run, stopped_by: str | None = None, verdict: str = "fail: ", lost: int = 0) -> Act:
    return Act(run, lambda: None, stopped_by, verdict, {"sent": 900, "answered": 900 - lost, "failed": lost})


def good_ending() -> list[Act]:
    release = run_with(Stage("canary", "failed", error="rolled back (drill: slow): slow"), title="bad", dag=RELEASE)
    return [
        act(run_with(Stage("register", "success"), state="success", title="good")),
        act(run_with(Stage("data_quality_gate", "failed", error="fail: 4"), title="rotten"), "data_quality_gate"),
        act(run_with(Stage("evaluation_gate", "failed", error="fail: loss"), title="poisoned"), "evaluation_gate"),
        act(release, "canary", "rolled back"),
    ]


def test_the_acts_as_they_should_end() -> None:
    assert unexpected(good_ending()) == []


@pytest.mark.parametrize(
    ("number", "ending", "words"),
    [
        (
            0,
            run_with(Stage("finetune", "failed", error="loss is NaN")),
            "should succeed, but its run ended in finetune: loss",
        ),
        (1, run_with(Stage("register", "success"), state="success"), "should be stopped by data_quality_gate"),
        (1, run_with(Stage("data_quality_gate", "failed", error="KeyError: 'success'")), "KeyError"),
        (2, run_with(Stage("data_quality_gate", "failed", error="fail: 1")), "should be stopped by evaluation_gate"),
        (2, run_with(Stage("evaluation_gate", "failed", error="inconclusive: 90 rows")), "inconclusive: 90 rows"),
        (3, run_with(Stage("canary", "failed", error="inconclusive: 3 requests")), "inconclusive: 3 requests"),
        (3, run_with(Stage("canary", "success"), state="success"), "ended as success"),
    ],
)
def test_any_other_ending_is_an_error(number: int, ending: Run, words: str) -> None:
    acts = good_ending()
    acts[number].run = ending
    (sentence,) = unexpected(acts)
    assert words in sentence


def test_a_lost_request_is_an_error_even_where_the_verdict_is_right() -> None:
    acts = good_ending()
    acts[3] = act(acts[3].run, "canary", "rolled back", lost=2)
    assert unexpected(acts) == ["the act 'bad' lost 2 requests of the traffic"]
