from __future__ import annotations

import io

import pytest
from rich.console import Console

from include.laptop.demo import ACTS, unexpected
from include.laptop.screen import Screen
from include.laptop.watch import Run, Stage

LOG = [
    {"event": "::group::Log message source details"},
    {"event": "DAG bundles loaded: dags-folder", "level": "info"},
    {"event": "training step=10 loss=2.5 progress=0.1", "level": "info"},
    {"event": "training step=50 loss=0.31 learning_rate=0.003 progress=0.5", "level": "info"},
    {"event": "saved checkpoint=file:///store/run.step50", "level": "info"},
]


def run_with(*stages: Stage, state: str = "failed", title: str = "good") -> Run:
    return Run(title, f"/data/{title}.jsonl", run_id="r", state=state, stages=list(stages))


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


def good_ending() -> list[Run]:
    return [
        run_with(Stage("register", "success"), state="success", title="good"),
        run_with(Stage("data_quality_gate", "failed", error="fail: 4 expectations"), title="rotten"),
        run_with(Stage("evaluation_gate", "failed", error="fail: loss .2 is above .1"), title="poisoned"),
    ]


def test_the_acts_as_they_should_end() -> None:
    assert unexpected(ACTS, good_ending()) == []


@pytest.mark.parametrize(
    ("act", "ending", "words"),
    [
        (
            0,
            run_with(Stage("finetune", "failed", error="loss is NaN")),
            "should succeed, but its run ended in finetune: loss",
        ),
        (1, run_with(Stage("register", "success"), state="success"), "should be failed by data_quality_gate"),
        (1, run_with(Stage("data_quality_gate", "failed", error="KeyError: 'success'")), "KeyError"),
        (2, run_with(Stage("data_quality_gate", "failed", error="fail: 1")), "should be failed by evaluation_gate"),
        (2, run_with(Stage("evaluation_gate", "failed", error="inconclusive: 90 rows")), "inconclusive: 90 rows"),
    ],
)
def test_any_other_ending_is_an_error(act: int, ending: Run, words: str) -> None:
    runs = good_ending()
    runs[act] = ending
    (sentence,) = unexpected(ACTS, runs)
    assert words in sentence
