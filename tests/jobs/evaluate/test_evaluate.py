"""Evaluation: right figures for a model that knows its answers, and for one that knows none."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from include.errors import DataError
from include.gates.evaluation import EvaluationGate, judge_evaluation
from include.specs.base import Artifact
from tests.faults.scenario import scenario
from tests.jobs.evaluate.conftest import KNOWN
from tests.jobs.models import byte_tokenizer, conversation, jsonl

Evaluate = Callable[..., Path]


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def rows(data: Artifact) -> list[dict[str, Any]]:
    (attempt,) = (Path(data.uri.removeprefix("file://")) / "attempts").iterdir()
    return lines(attempt / "files" / "heldout.jsonl")


def test_one_table_for_base_tuned_and_champion(
    evaluate: Evaluate,
    config: dict[str, Any],
    random_model: Artifact,
    make_artifact: Callable[..., Artifact],
    capsys: pytest.CaptureFixture[str],
) -> None:
    record = {"model": "m", "version": "3", "artifact": random_model.model_dump()}
    folder = evaluate(config, champion=make_artifact("champion-3", {"champion.json": json.dumps(record)}))
    results = json.loads((folder / "results.json").read_text())
    assert results["rows"] == 7
    assert results["few_shot"] == 2
    assert list(results["models"]) == ["base_zero_shot", "base_few_shot", "tuned", "champion"]
    assert results["models"]["tuned"]["exact_match"] == pytest.approx(6 / 7)
    assert results["models"]["base_zero_shot"]["exact_match"] == 0
    assert results["models"]["champion"] == results["models"]["base_zero_shot"]
    assert results["labels"]["delete"] == {
        "rows": 3,
        "exact_match": {"base_zero_shot": 0, "base_few_shot": 0, "tuned": 1, "champion": 0},
    }
    assert results["labels"]["get"]["exact_match"]["tuned"] == 0.75

    answers = {row["id"]: row for row in lines(folder / "answers.jsonl")}
    assert answers["known-2"]["prompt"] == "보여줘 db"
    assert answers["known-2"]["answers"]["tuned"] == answers["known-2"]["reference"] == "get db"
    assert "progress=1 model=champion rows=7" in capsys.readouterr().out

    gate = EvaluationGate(max_heldout_loss=10, min_rows=5)
    verdict = judge_evaluation(gate, results, lines(folder / "scores.jsonl"))
    assert verdict.passed, verdict.reasons


def test_losses_are_those_of_a_plain_forward_pass(
    evaluate: Evaluate,
    config: dict[str, Any],
    folders: dict[str, Path],
    rows: list[dict[str, Any]],
    chat_template: str,
) -> None:
    folder = evaluate(config)

    import torch
    from transformers import AutoModelForCausalLM

    from jobs.common.chat import encode, load_tokenizer
    from jobs.common.few_shot import choose_examples

    tokenizer = load_tokenizer(folders["random"] / "model", chat_template)
    shots = choose_examples(
        tokenizer, rows[:3], rows, count=2, max_prompt_tokens=192 - config["max_new_tokens"], seed=0
    )
    for name, model_name, examples in (
        ("base_zero_shot", "random", []),
        ("base_few_shot", "random", shots),
        ("tuned", "trained", []),
    ):
        model = AutoModelForCausalLM.from_pretrained(folders[model_name] / "model")
        nats = tokens = 0.0
        for row, scored in zip(rows, lines(folder / "scores.jsonl"), strict=True):
            ids, mask = encode(tokenizer, [*examples, *row["messages"]])
            own = sum(encode(tokenizer, row["messages"])[1])
            with torch.inference_mode():
                logs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
            marked = [position for position, one in enumerate(mask) if one][-own:]
            loss = -sum(logs[position - 1, ids[position]].item() for position in marked)
            score = scored["scores"][name]
            assert score["tokens"] == own
            assert score["loss"] == pytest.approx(loss / own, abs=2e-5)
            nats, tokens = nats + loss, tokens + own
        results = json.loads((folder / "results.json").read_text())
        assert results["models"][name]["heldout_loss"] == pytest.approx(nats / tokens, abs=2e-5)


def test_the_batch_size_does_not_change_an_answer(evaluate: Evaluate, config: dict[str, Any]) -> None:
    single, batched = (evaluate({**config, "batch_size": size}) for size in (1, 100))
    assert lines(single / "answers.jsonl") == lines(batched / "answers.jsonl")
    for one, other in zip(lines(single / "scores.jsonl"), lines(batched / "scores.jsonl"), strict=True):
        for name, score in one["scores"].items():
            assert score == pytest.approx(other["scores"][name], abs=1e-5)


def test_greedy_decoding_is_that_of_transformers(
    folders: dict[str, Path], rows: list[dict[str, Any]], chat_template: str
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    from jobs.common.chat import encode_prompt, load_tokenizer
    from jobs.common.generation import greedy

    for name in ("random", "trained"):
        tokenizer = load_tokenizer(folders[name] / "model", chat_template)
        prompts = [encode_prompt(tokenizer, row["messages"]) for row in rows]
        model = AutoModelForCausalLM.from_pretrained(folders[name] / "model")
        expected = [
            model.generate(torch.tensor([ids]), max_new_tokens=24, do_sample=False, eos_token_id=2, pad_token_id=0)
            for ids in prompts
        ]
        found = greedy(model, prompts, max_new_tokens=24, end_ids=[2], pad_id=0, batch_size=3)
        for ids, reference, answer in zip(prompts, expected, found, strict=True):
            written = reference[0, len(ids) :].tolist()
            assert answer.finished == (2 in written)
            assert answer.ids == [token for token in written if token != 2]
    assert any(answer.finished for answer in found)


def test_fewer_rows_than_asked_are_all_taken_and_more_are_cut(evaluate: Evaluate, config: dict[str, Any]) -> None:
    assert json.loads((evaluate(config) / "results.json").read_text())["rows"] == 7
    assert json.loads((evaluate({**config, "rows": 4}) / "results.json").read_text())["rows"] == 4


@scenario(
    given="a tuned model with one NaN among its weights",
    when="it is evaluated",
    then="the evaluation is kept, with null in place of every figure, and the gate ends red",
)
def test_a_model_of_nan_gets_null_and_never_passes(
    evaluate: Evaluate,
    config: dict[str, Any],
    folders: dict[str, Path],
    make_artifact: Any,
    reads: Callable[[object], None],
) -> None:
    from safetensors.torch import load_file, save

    tensors = load_file(folders["trained"] / "model" / "model.safetensors")
    tensors["model.norm.weight"][0] = float("nan")
    broken = make_artifact("broken", {"model/model.safetensors": save(tensors, {"format": "pt"})}, folders["trained"])
    folder = evaluate(config, tuned=broken)
    results = json.loads((folder / "results.json").read_text())
    assert results["models"]["tuned"]["heldout_loss"] is None
    assert math.isfinite(results["models"]["base_zero_shot"]["heldout_loss"])
    lenient = EvaluationGate(min_exact_match=0, min_gain=-1, max_heldout_loss=1e9, min_rows=1)
    verdict = judge_evaluation(lenient, results, lines(folder / "scores.jsonl"))
    assert verdict.outcome == "fail"
    assert "the loss of tuned on row known-0 (scores.jsonl line 1) is missing" in verdict.reasons[0]
    reads(verdict.summary)


@pytest.mark.parametrize(
    "token",
    [
        pytest.param("<|end|>", id="nothing"),
        pytest.param(
            "Ġ",
            id="blanks",
            marks=scenario(
                given="a tuned model that answers everything with blanks",
                when="it is evaluated",
                then="every answer counts as empty and as wrong, and the gate ends red",
            ),
        ),
    ],
)
def test_empty_answers_are_counted(
    evaluate: Evaluate,
    config: dict[str, Any],
    folders: dict[str, Path],
    make_artifact: Any,
    reads: Callable[[object], None],
    token: str,
) -> None:
    """A model whose logits are all equal but for one token's, so that it says nothing else."""
    import torch
    from safetensors.torch import load_file, save

    tensors = load_file(folders["random"] / "model" / "model.safetensors")
    tensors["model.embed_tokens.weight"] = torch.full_like(tensors["model.embed_tokens.weight"], 0.01)
    tensors["model.embed_tokens.weight"][byte_tokenizer().convert_tokens_to_ids(token)] = 0.02
    tensors["model.norm.weight"] = torch.ones_like(tensors["model.norm.weight"])
    for name in tensors:
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            tensors[name] = torch.zeros_like(tensors[name])
    silent = make_artifact("silent", {"model/model.safetensors": save(tensors, {"format": "pt"})}, folders["random"])
    folder = evaluate(config, tuned=silent)
    results = json.loads((folder / "results.json").read_text())
    assert results["models"]["tuned"]["empty_answers"] == 7
    assert results["models"]["tuned"]["exact_match"] == 0
    assert results["models"]["base_zero_shot"]["unfinished_answers"] > 0
    verdict = judge_evaluation(EvaluationGate(min_rows=1), results, lines(folder / "scores.jsonl"))
    assert verdict.outcome == "fail"
    assert "exact match .00 is below .80 (7 held-out rows)" in verdict.summary
    reads(verdict.summary)


@scenario(
    given="a champion that was evaluated once",
    when="the held-out set is another one by now",
    then="it is asked the new rows: no score of the old ones is taken over",
)
def test_the_champion_is_asked_the_same_rows(
    evaluate: Evaluate, config: dict[str, Any], random_model: Artifact, make_artifact: Any
) -> None:
    record = {"model": "m", "version": "1", "artifact": random_model.model_dump()}
    champion = make_artifact("champion-1", {"champion.json": json.dumps(record)})
    for name, asked in (("before", KNOWN[:3]), ("after", KNOWN[2:])):
        data = make_artifact(name, {"heldout.jsonl": jsonl(asked), "train.jsonl": jsonl(KNOWN[:3])})
        scores = lines(evaluate(config, champion=champion, data=data) / "scores.jsonl")
        assert [row["id"] for row in scores] == [known["id"] for known in asked]
        assert all({"tuned", "champion"} <= set(row["scores"]) for row in scores)


def heldout(when: str, then: str, *values: Any) -> Any:
    then = f"the evaluation ends with 65{then}"
    return pytest.param(*values, id=when, marks=scenario(given="a held-out set", when=when, then=then))


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        heldout("it is empty", " before a model is loaded", [],
                "heldout.jsonl is empty: give the recipe a held-out set"),
        heldout("the right answer of a row is blank", ": silence must not count as right",
                [*KNOWN, conversation("blank", "say nothing", "  \n ")],
                "heldout.jsonl line 7 (row blank): the answer is blank"),
    ],
)  # fmt: skip
def test_rows_that_cannot_be_asked_are_refused(
    refused: Callable[..., str],
    config: dict[str, Any],
    random_model: Artifact,
    trained_model: Artifact,
    make_artifact: Any,
    asked: list[dict[str, Any]],
    says: str,
) -> None:
    data = make_artifact("asked", {"heldout.jsonl": jsonl(asked), "train.jsonl": jsonl(KNOWN)})
    assert says in refused("evaluate", config, {"base": random_model, "tuned": trained_model, "data": data})


def test_few_shot_takes_as_many_examples_as_the_model_has_room_for(evaluate: Evaluate, config: dict[str, Any]) -> None:
    few = json.loads((evaluate({**config, "few_shot": 3, "max_new_tokens": 130}) / "results.json").read_text())
    assert few["few_shot"] == 1


LONG_ANSWER = conversation("long-answer", "show it all", "get " + "everything " * 4)
LONG_PROMPT = conversation("long-prompt", "show " + "the web " * 10, "get web")


@scenario(
    given="a held-out set",
    when="the right answer of one row is longer than evaluate.max_new_tokens, and another row than max_tokens",
    then="both count as unfinished and wrong, the other rows are scored as ever, and the gate judges the share",
)
@pytest.mark.remedy("raise evaluate.max_new_tokens or evaluate.max_tokens, or take shorter rows")
@pytest.mark.remedy("raise evaluate.max_tokens, or take shorter rows")
def test_a_row_that_is_too_long_counts_as_wrong(
    evaluate: Evaluate,
    config: dict[str, Any],
    make_artifact: Any,
    reads: Callable[[object], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    def scored(*asked: dict[str, Any], **raised: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        files = {"heldout.jsonl": jsonl(asked), "train.jsonl": jsonl(KNOWN[:3])}
        folder = evaluate({**config, **raised}, data=make_artifact(f"data-{len(asked)}", files))
        return json.loads((folder / "results.json").read_text()), lines(folder / "scores.jsonl")

    _, without = scored(*KNOWN)
    results, scores = scored(*KNOWN, LONG_ANSWER, LONG_PROMPT)
    for row, alone in zip(scores, without, strict=False):
        assert row["id"] == alone["id"]
        for name, score in row["scores"].items():
            assert score == pytest.approx(alone["scores"][name], abs=1e-5)
    for name, means in results["models"].items():
        assert means["rows_too_long"] == 2
        cut, unread = (row["scores"][name] for row in scores[6:])
        assert (cut["exact_match"], cut["too_long"], unread["exact_match"], unread["too_long"]) == (0, 1, 0, 1)
        # The whole of the one fits max_tokens, so that its loss counts; the other is not read at all.
        assert cut["loss"] > 0 and cut["tokens"] > config["max_new_tokens"]
        assert (unread["loss"], unread["tokens"]) == (None, 0)
        assert means["unfinished_answers"] >= 2
    assert results["models"]["tuned"]["exact_match"] == pytest.approx(6 / 8)
    assert "too_long model=tuned rows=2 of=8" in capsys.readouterr().out

    gate = EvaluationGate(min_exact_match=0.7, max_heldout_loss=10, min_rows=5)
    verdict = judge_evaluation(gate, results, scores)
    assert verdict.outcome == "fail"
    assert "2 of 8 held-out rows (25.00%) are too long for tuned to give the right answer" in verdict.summary
    reads(next(reason for reason in verdict.reasons if "tuned" in reason))
    assert judge_evaluation(gate.model_copy(update={"max_too_long": 0.25}), results, scores).passed
    raised = judge_evaluation(gate, *scored(*KNOWN, LONG_ANSWER, LONG_PROMPT, max_tokens=160, max_new_tokens=60))
    assert "too long for tuned" not in raised.summary

    nothing = judge_evaluation(gate, *scored(*KNOWN, max_tokens=4))
    assert "takes: raise evaluate.max_tokens, or take shorter rows" in nothing.summary
    assert judge_evaluation(gate, *scored(*KNOWN)).figures["too_long"] == 0


def test_examples_that_leave_no_room_are_too_long_for_few_shot_alone(
    evaluate: Evaluate, config: dict[str, Any], make_artifact: Any
) -> None:
    row = conversation("long", "show " + "the web " * 20, "get web")
    shots = [conversation("shot-0", "drop " + "the web " * 3, "delete web"), KNOWN[0]]
    data = make_artifact("tight", {"heldout.jsonl": jsonl([*KNOWN, row]), "train.jsonl": jsonl(shots)})
    results = json.loads((evaluate({**config, "max_tokens": 192}, data=data) / "results.json").read_text())
    assert results["few_shot"] == 1
    assert {name: means["rows_too_long"] for name, means in results["models"].items()} == {
        "base_zero_shot": 0,
        "base_few_shot": 1,
        "tuned": 0,
    }


def test_an_answer_may_be_as_long_as_there_is_room_and_no_longer(folders: dict[str, Path], chat_template: str) -> None:
    """With learned positions a model ends with an error where an answer goes beyond them."""
    from transformers import GPT2Config, GPT2LMHeadModel

    from jobs.common.chat import encode_prompt, load_tokenizer
    from jobs.common.generation import greedy
    from jobs.evaluate.measure import measure

    shape = {"vocab_size": 262, "n_positions": 64, "n_embd": 16, "n_layer": 1, "n_head": 2}
    model = GPT2LMHeadModel(GPT2Config(**shape, bos_token_id=1, eos_token_id=2)).eval()
    tokenizer = load_tokenizer(folders["random"] / "model", chat_template)
    asked = [
        conversation("room", "show", "get"),
        conversation("little-room", "show " * 10, "get"),
        conversation("no-room", "show " * 12, "get"),
        conversation("no-room-at-all", "show " * 40, "get"),
    ]
    scores = measure(
        model, tokenizer, asked, max_tokens=512, max_new_tokens=32, batch_size=2, on_batch=lambda done: None
    )
    assert [score.too_long for score in scores] == [False, False, True, True]
    assert [score.tokens > 0 for score in scores] == [True, True, False, False]
    assert scores[0].text and scores[1].text and not scores[3].text
    with pytest.raises(IndexError):
        greedy(
            model,
            [encode_prompt(tokenizer, asked[1]["messages"])],
            max_new_tokens=32,
            end_ids=[2],
            pad_id=0,
            batch_size=1,
        )


def test_a_row_that_stands_twice_is_refused(
    evaluate: Evaluate, config: dict[str, Any], rows: list[dict[str, Any]], make_artifact: Any
) -> None:
    text = "".join(json.dumps(row) + "\n" for row in [*rows, rows[0]])
    with pytest.raises(DataError, match=r"heldout.jsonl line 8: row known-0 is there twice"):
        evaluate(config, data=make_artifact("doubled", {"heldout.jsonl": text, "train.jsonl": text}))
