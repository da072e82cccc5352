"""The check as a real process, with the suites of this repository."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from include.gates.data_quality import data_quality
from include.home import PROJECT
from include.specs.base import Artifact
from tests.faults.scenario import scenario
from tests.jobs.models import TEMPLATE, byte_tokenizer, conversation, jsonl

FUNNEL = {"read": 3000, "kept": 2900, "removed": {"exact_duplicate": 100}}


def suite(name: str) -> dict[str, Any]:
    return json.loads((PROJECT / "include" / "expectations" / f"{name}.json").read_text(encoding="utf-8"))


def rows(start: int, count: int) -> list[dict[str, Any]]:
    return [
        conversation(
            f"{number:016x}",
            f"show me the logs of the pod number {number}",
            f"kubectl logs pod-{number}",
            ("logs", "describe", "delete")[number % 3],
        )
        for number in range(start, start + count)
    ]


@pytest.fixture
def base(make_artifact: Callable[..., Artifact], tmp_path: Path) -> Artifact:
    byte_tokenizer().save_pretrained(tmp_path / "base" / "model")
    return make_artifact("base", folder=tmp_path / "base")


@pytest.fixture
def curated(make_artifact: Callable[..., Artifact]) -> Callable[..., Artifact]:
    def make(splits: dict[str, list[dict[str, Any]]], **funnel: Any) -> Artifact:
        sizes = {name: len(members) for name, members in splits.items()}
        files = {f"{name}.jsonl": jsonl(members) for name, members in splits.items()}
        files["funnel.json"] = json.dumps({**FUNNEL, "splits": sizes, **funnel})
        return make_artifact("curated", files)

    return make


def config(name: str) -> dict[str, Any]:
    return {"suite": suite(name), "max_tokens": 90, "chat_template": TEMPLATE}


def test_good_data_passes_and_has_a_report(run_job, curated, base):
    data = curated({"train": rows(0, 2800), "validation": rows(2800, 100), "heldout": rows(5000, 1000)})
    outcome = run_job("check", config("kubectl"), {"curated": data, "base": base})
    result = json.loads((outcome.folder / "result.json").read_text())
    verdict = data_quality(result)
    assert verdict.passed, verdict.summary
    assert [item["name"] for item in result["expectations"]] == [
        item["meta"]["name"] for item in suite("kubectl")["expectations"]
    ]
    assert result["rows"] == 2900
    assert outcome.manifest.metrics == {"success": True, "rows": 2900, "failed": 0}
    report = (outcome.folder / "data_docs" / "index.html").read_text()
    assert "kubectl-rows" in report
    assert len(list((outcome.folder / "data_docs" / "validations").rglob("*.html"))) == 2


def test_bad_data_is_a_success_of_the_check_and_names_every_limit_it_missed(run_job, curated, base):
    train = rows(0, 2500)
    for row in train[:1800]:
        row["label"] = "logs"
    for row in train[1850:1930]:
        row["messages"][0]["content"] = "affiche les journaux de tous les conteneurs dans cet espace"
    train[0]["messages"][1]["content"] = "rm -rf " + "x" * 200
    train[1] = {**train[1], "messages": rows(5000, 1)[0]["messages"]}
    train += [{**row, "id": f"copy{row['id']}"} for row in rows(2000, 200)]
    del train[2]["label"]
    data = curated(
        {"train": train, "validation": rows(2800, 10), "heldout": [*rows(5000, 20), *rows(10**40, 1)]},
        read=10000,
        kept=2731,
        removed={"broken_json": 500, "held_out": 300, "near_duplicate": 6469},
    )
    outcome = run_job("check", config("kubectl"), {"curated": data, "base": base})
    result = json.loads((outcome.folder / "result.json").read_text())
    verdict = data_quality(result)
    assert verdict.outcome == "fail"
    assert {reason.split(":")[0] for reason in verdict.reasons} == {
        "label_present",
        "token_length",
        "duplicates",
        "held_out_overlap",
        "contradictions",
        "rows_for_validation",
        "rows_held_out",
        "held_out_length",
        "lost_in_curation",
        "lost_as_unreadable",
        "label_balance",
        "leaked_held_out_rows",
    }
    reasons = {reason.split(":")[0]: reason for reason in verdict.reasons}
    assert "1 of 2710 rows" in reasons["token_length"]
    assert f"first: row {train[0]['id']} (250)" in reasons["token_length"]
    assert "lost_in_curation: 0.7269, limit at most 0.2" in reasons["lost_in_curation"]
    assert outcome.manifest.metrics["failed"] == len(verdict.reasons)


@scenario(
    given="a check of curated data",
    when="the chat template raises an error",
    then="the check ends with 65 and names the row, before anything is trained",
)
def test_a_chat_template_that_raises_an_error(refused, curated, base):
    data = curated({"train": rows(0, 12), "validation": [], "heldout": []})
    template = TEMPLATE + "{{ raise_exception('no system, please') }}"
    message = refused("check", {**config("instructions"), "chat_template": template}, {"curated": data, "base": base})
    assert f"row {0:016x}: the chat template cannot render the conversation that starts with 'show me" in message


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"type": "expect_wonders"}, "expect_wonders"),
        ({"kwargs": {"column": "colour", "value_set": []}}, "column colour"),
        ({"kwargs": {"column": "language"}}, "language is not a valid"),
    ],
)
def test_a_suite_that_makes_no_sense_is_bad_configuration(tmp_path, change, sentence):
    import pandas as pd

    from include.errors import ConfigurationError
    from include.specs.check import Suite
    from jobs.check.validate import validate

    document = suite("kubectl")
    (chosen,) = (item for item in document["expectations"] if item["meta"]["name"] == "language")
    document["expectations"] = [{**chosen, **change}]
    tables = {"rows": pd.DataFrame({"id": ["a"], "language": ["en"]}), "figures": pd.DataFrame({"id": ["a"]})}
    with pytest.raises(ConfigurationError, match=sentence):
        validate(Suite.model_validate(document), tables, {}, tmp_path)


def test_values_that_are_missing_and_tables_that_are_empty_do_not_succeed(tmp_path):
    import pandas as pd

    from include.specs.check import Suite
    from jobs.check.validate import validate

    names = ("token_length", "lost_in_curation")
    document = suite("instructions")
    document["expectations"] = [item for item in document["expectations"] if item["meta"]["name"] in names]

    def successes(tokens: list[Any], lost: list[Any], folder: str) -> list[bool]:
        tables = {
            "rows": pd.DataFrame({"id": map(str, range(len(tokens))), "tokens": pd.Series(tokens, dtype="float64")}),
            "figures": pd.DataFrame({"id": ["all"] * len(lost), "share_lost": pd.Series(lost, dtype="float64")}),
        }
        found = validate(Suite.model_validate(document), tables, {"max_tokens": 10}, tmp_path / folder)
        return [item.success for item in found]

    assert successes([5, 10], [0.1], "good") == [True, True]
    assert successes([5, 11], [0.9], "bad") == [False, False]
    assert successes([5, None], [None], "missing") == [False, False]
    assert successes([], [], "empty") == [False, False]


def test_languages_of_whole_sentences_are_told_and_fragments_are_not_guessed():
    from jobs.check.language import languages

    texts = [
        "prod 네임스페이스의 파드 로그를 보여줘",
        "please delete the deployment in the dev namespace",
        "montre les journaux",
        "restart web",
    ]
    assert languages(texts) == ["ko", "en", "fr", "und"]
