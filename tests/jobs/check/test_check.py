"""The check as a real process, with the suites of this repository."""

from __future__ import annotations

import json
import re
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
def whole_base(make_artifact: Callable[..., Artifact], tmp_path: Path) -> Callable[..., Artifact]:
    """A base model as far as its weights do not matter; `changes` are of its config.json."""

    def make(tokenizer: Any = None, **changes: Any) -> Artifact:
        (tokenizer or byte_tokenizer()).save_pretrained(tmp_path / "whole" / "model")
        model = {"model_type": "llama", "vocab_size": 262, "max_position_embeddings": 256, **changes}
        return make_artifact("whole", {"model/config.json": json.dumps(model)}, tmp_path / "whole")

    return make


@pytest.fixture
def curated(make_artifact: Callable[..., Artifact]) -> Callable[..., Artifact]:
    def make(splits: dict[str, list[dict[str, Any]]], name: str = "curated", **funnel: Any) -> Artifact:
        sizes = {split: len(members) for split, members in splits.items()}
        files = {f"{split}.jsonl": jsonl(members) for split, members in splits.items()}
        files["funnel.json"] = json.dumps({**FUNNEL, "splits": sizes, **funnel})
        return make_artifact(name, files)

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


TRAINING = {"max_tokens": 90, "processes": 2}
EVALUATION = {
    "rows": 500,
    "max_new_tokens": 24,
    "max_tokens": 90,
    "few_shot": 2,
    "seed": 0,
    "heldout_fraction": 0.1,
    "min_rows": 30,
    "max_too_long": 0.05,
    "non_inferiority_margin": 0.02,
    "confidence": 0.95,
}
SERVING = {"rows": 500, "max_new_tokens": 24, "max_tokens": 90}


def told(folder: Path) -> dict[str, str]:
    """The gate's reasons, by the name of the expectation."""
    verdict = data_quality(json.loads((folder / "result.json").read_text()))
    return {reason.split(":")[0]: reason for reason in verdict.reasons}


def whole_config(**changes: dict[str, Any]) -> dict[str, Any]:
    stages = {"training": TRAINING, "evaluation": EVALUATION, "serving": SERVING}
    return {**config("instructions"), **{key: {**stage, **changes.get(key, {})} for key, stage in stages.items()}}


@scenario(
    given="a recipe, a base model, and data whose held-out rows are split off",
    when="there are fewer held-out rows than the evaluation gate needs, and one is too long to be answered",
    then="the data-quality gate says how many more are needed, and how many rows to bring, before anything is trained",
)
def test_what_later_stages_would_refuse_is_told_before_anything_is_trained(
    run_here, curated, whole_base, reads
) -> None:
    held_out = [*rows(5000, 14), conversation("f" * 16, "say it", "kubectl " + "logs " * 6)]
    splits = {"train": rows(0, 250), "validation": rows(300, 10), "heldout": held_out}
    data = curated(splits, read=280, kept=275, removed={})
    reasons = told(run_here("check", whole_config(), {"curated": data, "base": whole_base()}))
    assert set(reasons) == {"rows_held_out", "held_out_too_long", "held_out_few_shot"}
    assert reasons["rows_held_out"] == (
        "rows_held_out: 15, limit at least 30 (held-out rows that the evaluation gate needs, "
        "gates.evaluation.min_rows: 15 more are needed, so bring 450 rows that survive cleaning, of which 0.1 are held "
        "out; to show that a model is as good as a champion takes 189: 174 more are needed, so bring 2,250 rows that "
        "survive cleaning, of which 0.1 are held out)"
    )
    reads(reasons["rows_held_out"])
    assert "1 of 15 rows (6.67%), limit at most 5.00%" in reasons["held_out_too_long"]
    assert f"first: row {'f' * 16} (answer of 39 tokens)" in reasons["held_out_too_long"]


def test_a_single_long_row_is_no_reason_and_too_many_rows_are_none(run_here, curated, whole_base) -> None:
    # Longer than fine-tuning would take it, too: it is not trained on.
    held_out = [*rows(5000, 39), conversation("f" * 16, "say it", "kubectl " + "logs " * 20)]
    data = curated(
        {"train": rows(0, 250), "validation": rows(300, 10), "heldout": held_out}, read=310, kept=260, removed={}
    )
    folder = run_here("check", whole_config(), {"curated": data, "base": whole_base()})
    assert told(folder) == {}
    result = json.loads((folder / "result.json").read_text())
    (found,) = (item for item in result["expectations"] if item["name"] == "held_out_too_long")
    assert (found["success"], found["observed"]) == (True, 1 / 40)
    (found,) = (item for item in result["expectations"] if item["name"] == "rows_held_out")
    # Split off another data set: what is lacking is lacking in the held-out set.
    assert "takes 189: 149 more are needed in the held-out set" in found["message"]


def test_of_two_expectations_of_the_same_the_stricter_stays() -> None:
    from include.specs.check import Config
    from jobs.check.preflight import with_preflight

    funnel = {"kept": 1100, "splits": {"train": 900, "validation": 100, "heldout": 100}}

    def found(name: str, **evaluation: Any) -> dict[str, Any]:
        given = {**whole_config(evaluation=evaluation), "suite": suite(name)}
        expectations = with_preflight(Config.model_validate(given), funnel).expectations
        assert len({item.meta.name for item in expectations}) == len(expectations)
        return {item.meta.name: item for item in expectations}

    assert found("instructions")["rows_held_out"].kwargs["min_value"] == 30
    assert found("instructions", min_rows=3)["rows_held_out"].kwargs["min_value"] == 10
    assert found("kubectl")["rows_held_out"].kwargs["min_value"] == 900
    assert found("kubectl")["token_length"].kwargs["max_value"] == {"$PARAMETER": "max_tokens"}


def test_of_two_expectations_of_which_none_is_the_stricter_both_stay() -> None:
    from include.specs.check import Config
    from jobs.check.preflight import with_preflight

    document = suite("instructions")
    (length,) = (item for item in document["expectations"] if item["meta"]["name"] == "token_length")
    length["kwargs"] = {"column": "tokens", "max_value": 40, "mostly": 0.95}
    some = {**length, "kwargs": {"column": "tokens", "max_value": 9, "row_condition": "label=='pause'"}}
    some["meta"] = {"name": "short_pauses", "table": "rows"}
    document["expectations"] += [some]
    funnel = {"kept": 1100, "splits": {"train": 900, "validation": 100, "heldout": 100}}
    given = Config.model_validate({**whole_config(), "suite": document})
    expectations = {item.meta.name: item.kwargs for item in with_preflight(given, funnel).expectations}
    assert expectations["token_length"] == length["kwargs"] and expectations["short_pauses"] == some["kwargs"]
    assert expectations["token_length_needed"] == {"column": "tokens", "min_value": 1, "max_value": 90}


@pytest.mark.remedy("raise evaluate.max_new_tokens or evaluate.max_tokens")
@pytest.mark.parametrize(
    ("long", "key", "more"),
    [
        (conversation("f" * 16, "say it", "kubectl " + "logs " * 6), "max_new_tokens", 0),
        (conversation("e" * 16, "show " + "the pods " * 12, "kubectl get"), "max_tokens", 24),
    ],
    ids=["answer", "prompt"],
)
def test_a_length_that_is_raised_lets_a_long_row_be_answered(run_here, curated, whole_base, long, key, more) -> None:
    splits = {"train": rows(0, 250), "validation": rows(300, 10), "heldout": [*rows(5000, 9), long]}
    inputs = {"curated": curated(splits, read=280, kept=270, removed={}), "base": whole_base()}
    said = told(run_here("check", whole_config(evaluation={"min_rows": 5}), inputs))["held_out_too_long"]
    assert "raise evaluate.max_new_tokens or evaluate.max_tokens" in said
    enough = int(re.search(r"(?:answer|prompt) of (\d+) tokens", said)[1]) + more
    followed = whole_config(evaluation={"min_rows": 5, key: enough}, serving={key: enough})
    assert "held_out_too_long" not in told(run_here("check", followed, inputs))


@pytest.mark.remedy(", and raise evaluate.rows to …")
def test_rows_that_are_too_few_to_compare_a_champion_are_raised() -> None:
    from include.specs.check import Config
    from jobs.check.preflight import with_preflight

    def said(evaluated: int) -> str:
        config = Config.model_validate(whole_config(evaluation={"rows": evaluated}))
        funnel = {"kept": 1100, "splits": {"train": 900, "validation": 100, "heldout": 100}}
        (found,) = (one for one in with_preflight(config, funnel).expectations if one.meta.name == "rows_held_out")
        return found.description

    remedy = re.search(r", and raise evaluate\.rows to (\d+)$", said(100))
    assert "evaluate.rows" not in said(int(remedy[1]))


@pytest.mark.remedy("run the DAG again with refresh: [curate]")
def test_what_another_version_curated_is_checked_once_it_is_curated_anew(
    refused, run_here, curated, whole_base
) -> None:
    splits = {"train": rows(0, 12), "validation": rows(20, 2), "heldout": rows(5000, 3)}
    inputs = {"curated": curated(splits, removed={"odd": 1}), "base": whole_base()}
    assert "another version of curation" in (message := refused("check", whole_config(), inputs))
    assert message.endswith("run the DAG again with refresh: [curate]")
    run_here("check", whole_config(), {**inputs, "curated": curated(splits, "curated-anew")})


@pytest.mark.remedy("raise evaluate.rows to …", "raise engine.max_new_tokens to …", "raise engine.max_tokens to …")
@pytest.mark.remedy("lower ….max_tokens to …")
@pytest.mark.parametrize(
    ("changes", "model", "code", "says"),
    [
        ({"evaluation": {"rows": 20}}, {}, 64, "evaluate.rows is 20, and the evaluation gate decides nothing below 30"),
        ({"serving": {"max_new_tokens": 12}}, {}, 64, "engine.max_new_tokens is 12, less than the 24 of the"),
        ({"serving": {"max_tokens": 60}}, {}, 64, "engine.max_tokens: held-out row 0000000000001388 has a prompt of"),
        ({"serving": {"max_tokens": 257}}, {}, 64, "engine.max_tokens 257 is more than the base model's 256 positions"),
        ({"training": {"max_tokens": 257}}, {}, 64, "finetune.max_tokens 257 is more than the base model's 256"),
        ({}, {"vocab_size": 261}, 65, "the base model's tokenizer has 262 tokens, the model embeds 261"),
        ({}, {"auto_map": {"AutoModel": "x.X"}}, 65, "auto_map"),
        ({}, {"model_type": "deepseek_v3"}, 64, "converts no model of type 'deepseek_v3', so no engine could be built"),
    ],
)
def test_what_cannot_go_together_whatever_the_rows_are_is_one_error(
    refused, run_here, curated, whole_base, changes, model, code, says
) -> None:
    data = curated({"train": rows(0, 12), "validation": rows(20, 2), "heldout": rows(5000, 3)})
    inputs = {"curated": data, "base": whole_base(**model)}
    message = refused("check", whole_config(**changes), inputs, code)
    assert says in message
    if changes:
        stage, key, value = re.search(r": (?:raise|lower) (\w+)\.(\w+) to (\d+)$", message).groups()
        (ours,) = changes
        assert {"evaluate": "evaluation", "engine": "serving", "finetune": "training"}[stage] == ours
        run_here("check", whole_config(**{ours: {**changes[ours], key: int(value)}}), inputs)


def test_kinds_of_which_an_engine_can_be_built_are_not_refused(tmp_path: Path) -> None:
    from ctranslate2.converters.transformers import _MODEL_LOADERS
    from transformers import AutoConfig

    from jobs.check.conversion import CONVERTED, require_convertible

    assert {type(AutoConfig.for_model(kind)).__name__ for kind in CONVERTED} <= _MODEL_LOADERS.keys()
    (tmp_path / "config.json").write_text('{"model_type": "gpt_neox"}', encoding="utf-8")
    require_convertible(tmp_path, "gpt_neox")


def test_a_tokenizer_without_an_end_of_text_is_refused(refused, curated, whole_base) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.eos_token = None
    data = curated({"train": rows(0, 12), "validation": rows(20, 2), "heldout": rows(5000, 3)})
    message = refused("check", whole_config(), {"curated": data, "base": whole_base(tokenizer)}, 64)
    assert "names no end-of-text token" in message


def test_rows_that_fine_tuning_would_refuse_are_told_whatever_the_suite_asks(run_here, curated, whole_base) -> None:
    document = suite("instructions")
    document["expectations"] = [item for item in document["expectations"] if item["meta"]["name"] == "duplicates"]
    long = conversation("d" * 16, "show", "kubectl " * 15)
    data = curated({"train": [*rows(0, 50), long], "validation": rows(60, 1), "heldout": rows(5000, 40)})
    given = {**whole_config(), "suite": document}
    reasons = told(run_here("check", given, {"curated": data, "base": whole_base()}))
    assert set(reasons) == {"token_length", "rows_for_validation"}
    assert "1 of 52 rows (1.92%), limit at most 0.00%" in reasons["token_length"]
    assert "1, limit at least 2 (rows for each of finetune.processes, 2, to have one)" in reasons["rows_for_validation"]


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
