"""The record says what the artifacts say, however far the run came."""

from __future__ import annotations

from pathlib import Path

import pytest

from include.specs.report import Config, Spec
from jobs.report.build import build
from tests.jobs.report.world import DATA, MODEL, World


def test_a_candidate(world: World) -> None:
    world.data()
    world.model(right=9, champion=8)
    world.registered()
    limits = {"min_rows": 1, "min_exact_match": 0.5, "max_heldout_loss": 1.0, "non_inferiority_margin": 0.9}
    record = build(world.spec("customize", (*MODEL, "registered"), gates={"evaluation": limits}))
    assert record.verdict.line == "Passed every gate: toy version 2 is a candidate"
    assert record.base_model == "org/base"
    assert record.data is not None and (record.data.read, record.data.kept) == (10, 7)
    assert [removal.reason for removal in record.data.removals] == ["exact_duplicate", "broken_json"]
    assert [gate.outcome for gate in record.gates] == ["pass", "pass"]
    assert record.training is not None and record.training.best == (2, 0.5)
    assert record.evaluation is not None
    tuned = next(score for score in record.evaluation.scores if score.model == "tuned")
    assert tuned.lower < tuned.exact_match == 0.9 < tuned.upper
    (against,) = (found for found in record.evaluation.differences if found.against == "champion")
    assert (against.won, against.lost) == (2, 1) and against.lower < 0.1 < against.upper
    assert [answer.kind for answer in record.evaluation.answers] == ["lost"] + ["won"] * 9
    assert record.engine is None and record.canary is None


def test_the_data_gate_stops_a_run_with_its_own_reasons(world: World) -> None:
    world.data(leaked=2)
    record = build(world.spec("customize", DATA, failed="data_quality_gate", message="fail: …"))
    assert record.verdict.line == "Stopped by the data-quality gate"
    assert record.verdict.reasons[0].startswith("leaked: 2 of 10 rows (20.00%), limit at most 5.00%")
    assert record.verdict.stopped_by == "data_quality_gate"
    assert record.training is None and record.evaluation is None


def test_the_evaluation_gate_stops_a_run_and_the_wrong_answers_are_shown(world: World) -> None:
    world.data()
    world.model(right=2)
    record = build(world.spec("customize", MODEL, failed="evaluation_gate", message="fail: …"))
    assert record.verdict.line == "Stopped by the evaluation gate"
    assert any(reason.startswith("exact match .20 is below .80") for reason in record.verdict.reasons)
    assert record.evaluation is not None
    kinds = [answer.kind for answer in record.evaluation.answers]
    assert kinds == ["still wrong"] * 8 + ["won"] * 2
    assert build(world.spec("customize", MODEL, failed="evaluation_gate")).evaluation == record.evaluation


def test_a_gate_that_the_run_does_not_have_is_no_section(world: World) -> None:
    world.data()
    world.model(right=9)
    spec = world.spec("customize", MODEL)
    tasks = [task for task in spec.config.tasks if task.gate != "evaluation"]
    shown = build(spec.model_copy(update={"config": spec.config.model_copy(update={"tasks": tuple(tasks)})})).gates
    assert [gate.name for gate in shown] == ["data-quality"]


@pytest.mark.parametrize(
    ("message", "reads"),
    [
        (
            "data.jsonl, line 3: not JSON; write to kim@example.com",
            "data.jsonl, line 3: not JSON; write to <EMAIL>",
        ),
        (None, "it was killed, or marked by a person, before it could say why: its log has the last lines"),
    ],
)
def test_a_stage_that_failed_is_named_with_its_message(world: World, message: str | None, reads: str) -> None:
    record = build(world.spec("customize", (), failed="ingest", message=message))
    assert (record.verdict.line, record.verdict.reasons) == ("Failed in ingest", (reads,))
    assert record.chain == () and record.missing == {}


def test_a_run_that_never_came_to_its_end_is_no_success(world: World) -> None:
    world.data()
    spec = world.spec("customize", DATA)
    tasks = [task.model_copy(update={"state": None} if task.task == "finetune" else {}) for task in spec.config.tasks]
    record = build(spec.model_copy(update={"config": spec.config.model_copy(update={"tasks": tuple(tasks)})}))
    assert record.verdict.tone == "unsure" and record.verdict.line == "Ended early: finetune is never reached"


def test_a_dag_that_nobody_here_knows_is_told(world: World) -> None:
    record = build(world.stranger())
    assert record.verdict.line == "Passed every gate"
    assert record.verdict.reasons == ("data-quality: 1 of 1 limits kept",)
    assert [(made.role, made.inputs, made.cost) for made in record.chain] == [
        ("lessons", (), 0.25),
        ("marks", ("lessons",), None),
    ]
    assert record.chain[0].config == {"keep": 0.5} and record.missing == {}
    stopped = build(world.stranger(failed=True))
    assert stopped.verdict.line == "Stopped by the data-quality gate"
    assert stopped.verdict.reasons == ("leaked: 0.2, limit at most 5.00%",)


def test_a_run_without_gates_has_simply_succeeded(world: World) -> None:
    spec = world.stranger()
    inputs = spec.inputs.model_validate({"lessons": world.made["lessons"].model_dump()})
    assert build(spec.model_copy(update={"inputs": inputs})).verdict.line == "Succeeded"


def test_a_file_that_a_gate_cannot_read_is_named(world: World) -> None:
    spec = world.stranger()
    broken = world.commit("marks", "check", {"result.json": "{"})
    inputs = spec.inputs.model_validate({"marks": broken.model_dump()})
    record = build(spec.model_copy(update={"inputs": inputs}))
    assert record.gates == () and "result.json is not JSON" in record.missing["marks"]


def test_what_runs_of_an_earlier_version_left_is_read(world: World) -> None:
    config = world.spec("customize", (), failed="ingest", message="no rows").config.model_dump(mode="json")
    for task in config["tasks"]:
        task["sentence"] = task.pop("message")
        del task["gate"]
    config |= {"gate": config.pop("gates")["evaluation"]}
    for key in ("roles", "rollout"):
        del config[key]
    found = Config.model_validate(config)
    assert found.gates == {"evaluation": {"min_rows": 1}}
    assert [task.message for task in found.tasks if task.state == "failed"] == ["no rows"]


def test_a_release_is_told_from_its_data_on(promoted: Spec) -> None:
    record = build(promoted)
    assert record.verdict.line == "Live: toy version 2"
    assert [made.role for made in record.chain] == [
        *("data", "base", "curated", "checked", "tuned", "merged", "champion", "evaluation", "candidate", "engine"),
        "rollout",
    ]
    assert {made.role: made.reused for made in record.chain}["evaluation"]
    assert not {made.role: made.reused for made in record.chain}["engine"]
    assert {made.role: made.inputs for made in record.chain}["evaluation"] == (
        *("base", "merged", "curated", "champion"),
    )
    assert [hop.name for hop in record.parity] == ["merge", "engine", "serving tokenizer"]
    assert record.engine is not None and record.engine.speeds == {1: 9000.5, 16: 20000.0}
    assert record.engine.size_bytes == 2048
    assert record.canary is not None and (record.canary.replayed, record.canary.differing) == (3, 0)


def test_a_release_is_judged_by_the_limits_that_its_candidate_kept(world: World) -> None:
    world.data()
    world.model(right=6)
    world.candidate(evaluation={"min_exact_match": 0.55, "max_heldout_loss": 2.0, "min_rows": 10, "min_gain": 0.1})
    record = build(world.spec("release", ("candidate",), failed="engine", message="no", overrides={"engine.rows": 9}))
    assert record.overrides == {"canary.steps": [0.1], "engine.rows": 9}
    limits = {limit.name: limit for limit in record.gates[1].limits}
    assert limits["exact match, tuned"].limit == "at least 0.55"
    assert record.gates[1].outcome == "pass"


def test_a_canary_that_went_back_says_why(world: World, tmp_path: Path) -> None:
    world.data()
    world.model()
    world.candidate()
    world.engine()
    world.rollout(tmp_path, slow=9, drill="slow")
    record = build(world.spec("release", ("candidate", "engine", "rollout"), failed="canary", drill="slow"))
    assert record.verdict.line == "Rolled back (drill: slow): toy version 2"
    assert record.verdict.reasons[0].startswith("latency: 27 of the canary's 30")
    assert record.verdict.reasons[-1] == "Version 1 answers."
    assert record.canary is not None
    latency = next(limit for limit in record.canary.limits if limit.name.startswith("latency"))
    assert not latency.kept and record.canary.runs[-1].log10_e["latency"] > record.canary.e_limit


def test_what_moved_the_traffic_but_not_the_alias_is_no_success(promoted: Spec) -> None:
    tasks = [
        task.model_copy(update={"state": "failed", "message": "MLflow is away"} if task.task == "promote" else {})
        for task in promoted.config.tasks
    ]
    config = promoted.config.model_copy(update={"tasks": tuple(tasks)})
    verdict = build(promoted.model_copy(update={"config": config})).verdict
    assert verdict.line == "toy version 2 is live, but promote failed"
    assert verdict.reasons == ("MLflow is away",) and verdict.tone == "bad"


def test_analysis_runs_that_come_out_otherwise_are_counted(release: tuple[World, Spec], tmp_path: Path) -> None:
    world, _ = release
    folder = tmp_path / "store" / world.made["rollout"].uri.rpartition("/")[2]
    text = next(folder.rglob("looks.jsonl")).read_text().replace('"action":"go_on"', '"action":"promote"', 1)
    status, request = (next(folder.rglob(name)).read_text() for name in ("status.json", "request.json"))
    world.commit("rollout", "canary", {"looks.jsonl": text, "status.json": status, "request.json": request})
    record = build(world.spec("release", ("candidate", "engine", "rollout")))
    assert record.canary is not None and record.canary.differing == 1


def test_an_artifact_that_is_gone_or_altered_is_named_and_the_rest_is_told(release: tuple[World, Spec]) -> None:
    world, promoted = release
    root = Path(world.store.root.removeprefix("file://"))
    next((root / world.made["checked"].uri.rpartition("/")[2]).glob("manifest.json")).unlink()
    next((root / world.made["tuned"].uri.rpartition("/")[2]).rglob("loss.jsonl")).write_text("{}")
    record = build(promoted)
    assert "does not exist any more" in record.missing["checked"]
    assert "altered" in record.missing["tuned"]
    assert record.training is None and [gate.name for gate in record.gates] == ["evaluation"]
    assert record.verdict.line == "Live: toy version 2"


@pytest.mark.remedy("once the store takes them: clear the task outcome then")
def test_a_release_whose_evidence_is_stored_later_is_live_and_says_where_it_will_be(
    world: World, tmp_path: Path
) -> None:
    world.data()
    world.model()
    world.candidate()
    world.engine()
    spec = world.spec("release", ("candidate", "engine"))
    uri = world.store.uri("canary-1")
    later = build(spec.model_copy(update={"config": spec.config.model_copy(update={"evidence_pending": uri})}))
    assert (later.verdict.line, later.verdict.reasons) == (
        "Live: toy version 2",
        ("its analysis runs are not in the store yet",),
    )
    assert f"stores them at {uri} once the store takes them: clear the task outcome then" in later.missing["rollout"]
    world.rollout(tmp_path)
    cleared = build(world.spec("release", ("candidate", "engine", "rollout")))
    assert cleared.missing == {} and cleared.canary is not None


def test_personal_data_is_masked_also_where_the_recipe_keeps_it(world: World) -> None:
    secret = "write to kim@example.com or call +82 10-1234-5678"
    world.data(secret)
    world.model(secret)
    text = build(world.spec("customize", MODEL)).model_dump_json()
    assert "kim@example.com" not in text and "1234-5678" not in text
    assert "<EMAIL>" in text and "<PHONE>" in text
