from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from airflow.sdk.exceptions import AirflowException, AirflowFailException, TaskDeferred

from include.errors import ConfigurationError
from include.gates import find_gate, gate_names
from include.specs import job_names
from operators.gates.sensor import GateSensor
from operators.gates.trigger import ArtifactTrigger
from tests.faults.scenario import scenario


def result(**failed):
    expectations = [
        {
            "name": name,
            "success": ok,
            "observed": observed,
            "limit": limit,
            "message": f"{name}: {observed}, limit {limit}",
        }
        for name, (ok, observed, limit) in failed.items()
    ]
    return {"success": all(found["success"] for found in expectations), "rows": 10, "expectations": expectations}


def gate(store, name="check-1", kind="data_quality", **kwargs):
    return GateSensor(task_id="gate", gate=kind, artifact=store.uri(name), **kwargs)


def evaluation(exact_match: float, rows: int = 600):
    right = round(exact_match * rows)
    means = {
        "base_zero_shot": {"exact_match": 0.0, "rouge_l": 0.0, "heldout_loss": 3.0},
        "base_few_shot": {"exact_match": 0.0, "rouge_l": 0.0, "heldout_loss": 3.0},
        "tuned": {"exact_match": right / rows, "rouge_l": 1.0, "heldout_loss": 0.05},
    }
    scores = [
        {
            "id": str(row),
            "scores": {
                name: {
                    "exact_match": int(name == "tuned" and row < right),
                    "rouge_l": figures["rouge_l"],
                    "loss": figures["heldout_loss"],
                    "tokens": 5,
                }
                for name, figures in means.items()
            },
        }
        for row in range(rows)
    ]
    return {
        "results.json": json.dumps({"rows": rows, "models": means}),
        "scores.jsonl": "".join(json.dumps(score) + "\n" for score in scores),
    }


def test_good_data_passes(store, commit):
    commit("check-1", {"result.json": json.dumps(result(rows=(True, 10, 5)))})
    assert gate(store).execute({}) is None


def test_bad_data_ends_the_run_with_every_reason_and_a_remedy(store, commit):
    commit("check-1", {"result.json": json.dumps(result(rows=(False, 1, 5), lost=(False, 0.9, 0.2), ok=(True, 1, 1)))})
    with pytest.raises(AirflowFailException) as failure:
        gate(store).execute({})
    for words in ("rows: 1, limit 5", "lost: 0.9, limit 0.2", "removed.jsonl", store.uri("check-1")):
        assert words in str(failure.value)
    assert "ok:" not in str(failure.value)


def test_the_recipes_limits_judge_the_model(store, commit):
    commit("evaluate-1", evaluation(0.85))
    limits = {"evaluation": {"min_exact_match": 0.8, "non_inferiority_margin": 0.02}}
    assert gate(store, "evaluate-1", "evaluation", gates=limits).execute({}) is None
    limits["evaluation"]["min_exact_match"] = 0.9
    with pytest.raises(AirflowFailException, match=r"exact match \.85 is below \.90 .*answers\.jsonl"):
        gate(store, "evaluate-1", "evaluation", gates=limits).execute({})


AN_EVALUATION = "an evaluation of 1,000 held-out rows, right in 92%"
RED = "the gate ends red with the numbers, and nothing is registered"


@scenario(given=AN_EVALUATION, when="the recipe limits a metric that does not exist", then=RED)
def test_an_unknown_limit_ends_the_run(store, commit, reads):
    commit("evaluate-1", evaluation(0.92, 1000))
    with pytest.raises(AirflowFailException, match=r"gates\.evaluation\.min_accuracy is not a limit") as failure:
        gate(store, "evaluate-1", "evaluation", gates={"evaluation": {"min_accuracy": 0.9}}).execute({})
    reads(failure.value)


@scenario(given=AN_EVALUATION, when="one byte of its scores is flipped on the disk", then=RED)
def test_an_altered_artifact_never_passes(store, commit, reads):
    commit("evaluate-1", evaluation(0.92, 1000))
    (path,) = (found for found in Path(store.root.removeprefix("file://")).rglob("scores.jsonl"))
    path.write_text(path.read_text().replace('"exact_match": 0', '"exact_match": 1', 1))
    says = r"scores\.jsonl is missing or was altered after its commit"
    with pytest.raises(AirflowFailException, match=says) as failure:
        gate(store, "evaluate-1", "evaluation").execute({})
    reads(failure.value)


def test_an_artifact_that_is_not_there_yet_is_waited_for(store, commit):
    with pytest.raises(TaskDeferred) as deferral:
        gate(store).execute({})
    assert isinstance(deferral.value.trigger, ArtifactTrigger)
    assert deferral.value.timeout is not None
    commit("check-1", {"result.json": json.dumps(result(rows=(True, 10, 5)))})
    assert getattr(gate(store), deferral.value.method_name)({}, {"artifact": store.uri("check-1")}) is None


def test_a_store_that_is_away_is_worth_another_try(store):
    root = Path(store.root.removeprefix("file://"))
    root.rename(root.with_name("away"))
    with pytest.raises(AirflowException, match="is not there") as failure:
        gate(store).execute({})
    assert not isinstance(failure.value, AirflowFailException)


def test_an_unknown_gate_is_an_error_of_the_dag(store):
    with pytest.raises(ConfigurationError, match="no gate 'data_qualty': did you mean 'data_quality'"):
        gate(store, kind="data_qualty")


@pytest.mark.remedy("correct gates.….…")
def test_a_limit_that_is_none_is_named_with_its_key(store, commit):
    commit("evaluate-1", evaluation(0.85))
    with pytest.raises(AirflowFailException, match=r"is not a limit \(.*: correct gates\.") as refused:
        gate(store, "evaluate-1", "evaluation", gates={"evaluation": {"min_rows": "many"}}).execute({})
    _, named, key = str(refused.value).rpartition("correct ")[2].split(".")
    gate(store, "evaluate-1", "evaluation", gates={named: {key: 600}}).execute({})


@pytest.mark.remedy("run the DAG again with refresh: [check]", "run the DAG again with refresh: [evaluate]")
@pytest.mark.remedy("run the DAG again with the Param refresh naming the stage that made it")
@pytest.mark.parametrize(
    ("kind", "good", "bad", "says"),
    [
        ("data_quality", {"result.json": json.dumps(result(rows=(True, 10, 5)))}, {"result.json": "[]"}, "[check]"),
        ("evaluation", evaluation(0.85), {"results.json": "{}"}, "[evaluate]"),
        ("evaluation", evaluation(0.85), {"scores.jsonl": "{"}, "naming the stage"),
    ],
)
def test_what_cannot_be_judged_is_judged_once_it_is_made_anew(store, commit, kind, good, bad, says):
    commit("made-1", {**good, **bad})
    with pytest.raises(AirflowFailException, match=rf"run the DAG again with .*refresh.*{re.escape(says)}"):
        gate(store, "made-1", kind).execute({})
    # The name that the Param gives it is another one: see tests/dags/test_integrity.py.
    commit("made-2", good)
    gate(store, "made-2", kind).execute({})


@pytest.mark.parametrize("name", gate_names())
def test_every_gate_has_what_a_sensor_and_a_recipe_need(name):
    found = find_gate(name)
    assert found.job in job_names()
    assert found.limits() is not None and found.files
    assert found.remedy.format(artifact="file:///x").endswith(".")
    assert not found.judge(found.limits(), *([] if file.endswith(".jsonl") else {} for file in found.files)).passed
