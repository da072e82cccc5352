"""The evaluation gate: what passes, what fails, what is undecided, and what is not to be believed."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from include.gates.evaluation import EvaluationGate, judge_evaluation
from tests.faults.scenario import scenario

GATE = EvaluationGate()


def judged(
    when: str,
    *values: Any,
    given: str = "an evaluation of 1,000 held-out rows, right in 92%",
    then: str = "the gate ends red with the numbers, and nothing is registered",
) -> Any:
    """Return a case that is a scenario: a gate ends red on every verdict but `pass`."""
    return pytest.param(*values, id=when, marks=scenario(given=given, when=when, then=then))


MORE_ROWS = "the gate is inconclusive and says how many rows are missing"


def evaluation(rows: int = 1000, **right: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """An evaluation in which each model is right on its first so-many rows, at a loss of .05."""
    models = {"base_zero_shot": 0, "base_few_shot": 100, "tuned": 920, **right}
    scores = [
        {
            "id": f"row-{number}",
            "scores": {
                name: {"exact_match": int(number < share), "rouge_l": 0.5, "loss": 0.05, "tokens": 5 + number % 3}
                for name, share in models.items()
            },
        }
        for number in range(rows)
    ]
    return table(scores), scores


def table(scores: list[dict[str, Any]]) -> dict[str, Any]:
    names = scores[0]["scores"] if scores else {"base_zero_shot", "base_few_shot", "tuned"}
    models = {}
    for name in names:
        own = [row["scores"][name] for row in scores]
        tokens = sum(score["tokens"] for score in own) or 1
        models[name] = {
            "exact_match": sum(score["exact_match"] for score in own) / max(len(own), 1),
            "rouge_l": 0.5,
            "heldout_loss": sum(score["loss"] * score["tokens"] for score in own) / tokens,
        }
    return {"rows": len(scores), "models": models}


def test_a_good_model_passes_with_its_figures() -> None:
    verdict = judge_evaluation(GATE, *evaluation())
    assert verdict.passed, verdict.reasons
    assert verdict.figures["tuned_exact_match"] == 0.92
    assert verdict.figures["gain"] == pytest.approx(0.82)
    assert verdict.figures["tuned_heldout_loss"] == pytest.approx(0.05)
    assert verdict.figures["rows"] == 1000


def test_every_missed_limit_is_named_with_its_number() -> None:
    _, scores = evaluation(tuned=725, base_few_shot=500)
    for row in scores:
        row["scores"]["tuned"]["loss"] = 0.239
    verdict = judge_evaluation(GATE, table(scores), scores)
    assert verdict.outcome == "fail"
    assert verdict.reasons == (
        "exact match .725 is below .80 (1,000 held-out rows)",
        "gain .225 over the base model's best .50 is below .30 (1,000 held-out rows)",
        "held-out loss .239 is above .10 (1,000 held-out rows)",
    )


def test_limits_themselves_are_kept() -> None:
    gate = EvaluationGate(min_exact_match=0.9, min_gain=0.3, max_heldout_loss=0.05000001)
    assert judge_evaluation(gate, *evaluation(tuned=900, base_zero_shot=600)).passed
    assert judge_evaluation(gate, *evaluation(tuned=899, base_zero_shot=599)).outcome == "fail"
    assert judge_evaluation(gate, *evaluation(tuned=900, base_zero_shot=601)).outcome == "fail"


def test_the_gain_is_over_the_better_base() -> None:
    for base in ("base_zero_shot", "base_few_shot"):
        assert judge_evaluation(GATE, *evaluation(**{base: 700})).outcome == "fail"


def test_the_loss_is_a_mean_over_tokens_not_rows() -> None:
    _, scores = evaluation(rows=600)
    for number, row in enumerate(scores):
        row["scores"]["tuned"].update(loss=0.3 if number % 2 else 0.01, tokens=1 if number % 2 else 30)
    verdict = judge_evaluation(EvaluationGate(min_gain=0), table(scores), scores)
    assert verdict.figures["tuned_heldout_loss"] == pytest.approx((0.3 * 1 + 0.01 * 30) / 31)
    assert verdict.passed, verdict.reasons


@pytest.mark.parametrize(
    ("rows", "missing"),
    [judged("it holds one row, answered rightly", 1, 499, given="an evaluation", then=MORE_ROWS), (400, 100)],
)
def test_too_few_rows_decide_nothing(reads: Callable[[object], None], rows: int, missing: int) -> None:
    verdict = judge_evaluation(GATE, *evaluation(rows=rows, tuned=rows, base_few_shot=0))
    assert verdict.outcome == "inconclusive"
    assert verdict.reasons == (f"{rows} held-out rows decide nothing: {missing} more are needed (min_rows)",)
    reads(verdict.summary)


def lengthened(scores: list[dict[str, Any]], count: int, *names: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The same evaluation, with its last rows too long for these models."""
    for row in scores[len(scores) - count :]:
        for name in names:
            row["scores"][name].update(exact_match=0, too_long=1, loss=None, tokens=0)
    own = table([row for row in scores if not any(score.get("too_long") for score in row["scores"].values())])
    for name, means in own["models"].items():
        means["exact_match"] = sum(row["scores"][name]["exact_match"] for row in scores) / len(scores)
        if name not in names:
            means["heldout_loss"] = table([{**row, "scores": {name: row["scores"][name]}} for row in scores])["models"][
                name
            ]["heldout_loss"]
    return {**own, "rows": len(scores)}, scores


ALL = ("base_zero_shot", "base_few_shot", "tuned")


def test_a_few_rows_that_are_too_long_count_as_wrong() -> None:
    verdict = judge_evaluation(GATE, *lengthened(evaluation()[1], 10, *ALL))
    assert verdict.passed, verdict.reasons
    assert verdict.figures["too_long"] == 0.01
    (limit,) = (limit for limit in verdict.limits if "too long" in limit.name)
    assert (limit.observed, limit.limit, limit.kept) == ("0.01", "at most 0.01", True)


def test_more_of_them_than_the_limit_stop_the_run() -> None:
    verdict = judge_evaluation(GATE, *lengthened(evaluation()[1], 11, "base_few_shot"))
    assert verdict.outcome == "fail"
    assert verdict.reasons == (
        "11 of 1,000 held-out rows (1.10%) are too long for base_few_shot to give the right answer, at most 1.00% may "
        "be (max_too_long): raise evaluate.max_new_tokens or evaluate.max_tokens, or take shorter rows",
    )


def test_a_row_that_is_too_long_for_the_champion_alone_is_no_gain() -> None:
    """The champion takes less than the tuned model: what it was not asked counts as answered rightly."""
    _, scores = evaluation(tuned=1000, champion=1000)
    verdict = judge_evaluation(GATE, *lengthened(scores, 10, "champion"))
    assert verdict.passed, verdict.reasons
    assert verdict.figures["champion_difference"] == 0
    _, scores = evaluation(tuned=1000, champion=1000)
    assert judge_evaluation(GATE, *lengthened(scores, 10, "champion", "tuned")).figures["champion_difference"] == 0
    _, scores = evaluation(tuned=1000, champion=1000)
    verdict = judge_evaluation(GATE, *lengthened(scores, 10, "tuned"))
    assert verdict.figures["champion_difference"] == pytest.approx(-0.01)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"too_long": 1, "exact_match": 1}, "tuned is right on a row that is too long for it"),
        ({"too_long": 2}, "the too_long of tuned is neither 0 nor 1"),
        ({"loss": None, "tokens": 0}, "the loss of tuned on row row-999 (scores.jsonl line 1000) is missing"),
        ({"too_long": 1, "exact_match": 0, "loss": None}, "the loss of tuned on row row-999"),
        ({"too_long": 1, "exact_match": 0, "tokens": 0}, "tuned was scored on no answer token"),
    ],
)
def test_a_row_is_not_called_too_long_to_hide_its_figures(change: dict[str, Any], says: str) -> None:
    results, scores = evaluation()
    scores[-1]["scores"]["tuned"].update(change)
    verdict = judge_evaluation(GATE, results, scores)
    assert verdict.outcome == "fail"
    assert says in verdict.reasons[0]


def test_rows_that_are_all_too_long_decide_nothing_else() -> None:
    results, scores = evaluation()
    for row in scores:
        row["scores"]["tuned"].update(exact_match=0, too_long=1, loss=None, tokens=0)
    verdict = judge_evaluation(GATE, results, scores)
    assert verdict.outcome == "fail"
    assert verdict.reasons[0].startswith("every held-out row is longer than tuned takes: raise evaluate.max_tokens")


def test_too_few_rows_do_not_hide_a_failure() -> None:
    verdict = judge_evaluation(GATE, *evaluation(rows=400, tuned=100))
    assert verdict.outcome == "fail"


@pytest.mark.parametrize(
    ("champion", "flipped", "outcome", "words"),
    [
        judged(
            "the champion is right in the very same rows", 920, 0, "pass", "",
            then="the gate passes: as good as the champion is good enough",
        ),
        judged(
            "the champion is right as often, in other rows", 920, 80, "inconclusive",
            "exact match .92 against the champion's .92, difference .00", then=MORE_ROWS,
        ),
        judged("the champion is right in 96%", 960, 0, "fail", "exact match .92 against the champion's .96"),
        (900, 0, "pass", ""),
        (925, 20, "pass", ""),
        (935, 40, "inconclusive", "not decided at a margin of .02; about"),
        (990, 0, "fail", "worse by more than the margin of .02"),
    ],
)  # fmt: skip
def test_the_champion_is_a_paired_comparison(
    reads: Callable[[object], None], champion: int, flipped: int, outcome: str, words: str
) -> None:
    """`flipped` right answers of the champion are moved to rows that the tuned model gets wrong, and back."""
    _, scores = evaluation(champion=champion)
    for number in range(flipped):
        scores[number]["scores"]["champion"]["exact_match"] = 0
        scores[champion + number]["scores"]["champion"]["exact_match"] = 1
    verdict = judge_evaluation(GATE, table(scores), scores)
    assert verdict.outcome == outcome, verdict.reasons
    assert words in verdict.summary
    reads(verdict.summary)
    assert verdict.figures["champion_difference_lower"] <= verdict.figures["champion_difference"]
    assert verdict.figures["champion_difference"] <= verdict.figures["champion_difference_upper"]


def test_the_same_shares_are_decided_or_not_by_how_they_pair() -> None:
    together = evaluation(champion=925)
    _, apart = evaluation(champion=925)
    for number in range(75):
        apart[number]["scores"]["champion"]["exact_match"] = 0
        apart[925 + number]["scores"]["champion"]["exact_match"] = 1
    assert table(apart)["models"] == together[0]["models"]
    assert judge_evaluation(GATE, *together).passed
    assert judge_evaluation(GATE, table(apart), apart).outcome == "inconclusive"


def test_absolute_limits_hold_for_a_model_better_than_the_champion() -> None:
    verdict = judge_evaluation(GATE, *evaluation(tuned=700, champion=600))
    assert verdict.outcome == "fail"
    assert verdict.reasons == ("exact match .70 is below .80 (1,000 held-out rows)",)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        judged("one loss is missing", "loss", None),
        judged("one loss is NaN", "loss", math.nan),
        judged("one loss is infinite", "loss", math.inf),
        judged("one row has no exact match", "exact_match", None),
        ("loss", "0.05"), ("loss", True),
        ("exact_match", math.nan), ("exact_match", math.inf), ("exact_match", "0.05"), ("exact_match", True),
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", ["tuned", "base_few_shot", "champion"])
def test_a_figure_that_is_no_number_never_passes(
    reads: Callable[[object], None], key: str, value: Any, name: str
) -> None:
    results, scores = evaluation(champion=900)
    scores[500]["scores"][name][key] = value
    verdict = judge_evaluation(GATE, results, scores)
    assert verdict.outcome == "fail"
    assert f"{key} of {name} on row row-500 (scores.jsonl line 501)" in verdict.summary
    reads(verdict.summary)


def corrupted(change: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    results, scores = copy.deepcopy(evaluation(rows=600, champion=500))
    match change:
        case "no table":
            del results["models"]
        case "no base":
            del results["models"]["base_zero_shot"], results["models"]["base_few_shot"]
        case "no rows":
            scores = []
            results["rows"] = 0
        case "a row short":
            scores.pop()
        case "a row twice":
            scores[9] = scores[8]
        case "a row without a model":
            del scores[7]["scores"]["champion"]
        case "champion not in the table":
            del results["models"]["champion"]
        case "a better table":
            results["models"]["tuned"]["exact_match"] += 0.001
        case "a lower loss":
            results["models"]["tuned"]["heldout_loss"] -= 0.001
        case "null in the table":
            results["models"]["tuned"]["heldout_loss"] = None
        case "half a match":
            scores[3]["scores"]["tuned"]["exact_match"] = 0.5
        case "no tokens":
            scores[3]["scores"]["tuned"]["tokens"] = 0
    return results, scores


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("no table", "no table of models"),
        judged("the base model was not asked", "no base", "no figures for base_zero_shot, base_few_shot"),
        judged("it holds no row", "no rows", "no held-out row was scored", given="an evaluation"),
        ("a row short", "speaks of 600 rows, scores.jsonl holds 599"),
        ("a row twice", "line 10: row row-8 was scored twice"),
        judged(
            "the champion was asked other rows",
            "a row without a model",
            "line 8 (row row-7) does not hold the models of the table",
        ),
        ("champion not in the table", "line 1 (row row-0) does not hold the models of the table"),
        ("a better table", "results.json gives tuned exact_match 1.001, its rows give 1:"),
        ("a lower loss", "results.json gives tuned heldout_loss"),
        ("null in the table", "results.json gives tuned heldout_loss None"),
        ("half a match", "exact_match of tuned is neither 0 nor 1"),
        ("no tokens", "tuned was scored on no answer token"),
    ],
)
def test_an_evaluation_that_cannot_be_believed_fails(reads: Callable[[object], None], change: str, words: str) -> None:
    verdict = judge_evaluation(EvaluationGate(min_exact_match=0, min_gain=-1, min_rows=1), *corrupted(change))
    assert verdict.outcome == "fail"
    assert words in verdict.summary
    reads(verdict.summary)


@pytest.mark.parametrize(
    ("results", "scores"),
    [judged("its files hold lists in place of objects", [1, 2], [[3]], given="an evaluation")],
)
def test_what_does_not_have_the_shape_of_an_evaluation_fails(
    reads: Callable[[object], None], results: Any, scores: Any
) -> None:
    verdict = judge_evaluation(GATE, results, scores)
    assert verdict.outcome == "fail"
    assert "do not have the shape of an evaluation" in verdict.summary
    reads(verdict.summary)


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.just(10**400),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
paths = st.lists(st.sampled_from(["models", "tuned", "exact_match", "heldout_loss", "rows"]), min_size=1, max_size=3)
inner_paths = st.lists(st.sampled_from(["id", "scores", "tuned", "loss", "tokens", "exact_match"]), max_size=3)


def replaced(document: Any, path: list[str], value: Any) -> Any:
    if not path:
        return value
    return (
        {**document, path[0]: replaced(document.get(path[0], {}), path[1:], value)}
        if isinstance(document, dict)
        else value
    )


@given(anything, anything)
def test_whatever_is_no_evaluation_fails_with_a_sentence(results: Any, scores: Any) -> None:
    verdict = judge_evaluation(EvaluationGate(min_rows=1), results, scores if isinstance(scores, list) else [scores])
    assert verdict.outcome == "fail"


@given(paths, inner_paths, anything, anything, st.booleans())
def test_an_evaluation_with_anything_in_place_of_a_part_is_judged_without_a_crash(
    path: list[str], inner: list[str], there: Any, here: Any, both: bool
) -> None:
    results, scores = evaluation(rows=2, tuned=2)
    scores[1] = replaced(scores[1], inner, here)
    verdict = judge_evaluation(EvaluationGate(min_rows=3), replaced(results, path, there) if both else results, scores)
    assert verdict.outcome != "pass"


@pytest.mark.parametrize(
    ("first", "loss", "says"),
    [
        judged("the losses are finite and their sum is not", 0, 1e308, "no model has such a loss"),
        judged("one loss is negative", 999, -0.5, "no model has such a loss"),
        (0, -0.01, "no model has such a loss"),
        pytest.param(0, 10**400, "cannot be released", id="too large for a float"),
    ],
)
def test_a_loss_that_no_model_has_fails(reads: Callable[[object], None], first: int, loss: float, says: str) -> None:
    results, scores = evaluation()
    for row in scores[first:]:
        row["scores"]["tuned"]["loss"] = loss
    verdict = judge_evaluation(GATE, results, scores)
    assert verdict.outcome == "fail"
    assert says in verdict.summary
    reads(verdict.summary)
