"""The evaluation gate: may a tuned model become a candidate?

Absolute limits come first; then, where there is a champion, paired non-inferiority to it by a margin. The table of
an evaluation is not believed: every figure is computed again from the scores of the single rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any

from pydantic import Field

from include.gates import Gate, Limit, Verdict, is_number
from include.model import Model
from include.statistics import PairedCounts, paired_difference_interval, rows_to_decide

BASES = ("base_zero_shot", "base_few_shot")
TUNED = "tuned"
CHAMPION = "champion"
_REMEDY = "run the DAG again with refresh: [evaluate]"
_TOLERANCE = 1e-6
_LARGEST = 1e9
"""Of a loss in nats and of a row's tokens: far beyond any, and sums of millions of their products are finite."""


class EvaluationGate(Model):
    """Limits. Shares in 0…1, the loss in nats an answer token.

    Attributes:
        min_exact_match: of the tuned model.
        min_gain: of the tuned model's exact match over the better of base zero-shot and base few-shot.
        max_heldout_loss: of the tuned model. Greedy answers average label noise out; the loss does not.
        min_rows: held-out rows below which nothing is decided.
        max_too_long: share of the rows, of any model, that are too long for it to give the right answer. They count
            as wrong answers; beyond this share the lengths would decide, not the models.
        non_inferiority_margin: how much worse than the champion, in exact match, still counts as not worse.
        confidence: of the two-sided interval of that difference; its lower bound is a one-sided test at half of
            the rest, as is the custom for non-inferiority (ICH E9, 3.3.2 and 5.5).
    """

    min_exact_match: Annotated[float, Field(ge=0, le=1)] = 0.80
    min_gain: Annotated[float, Field(ge=-1, le=1)] = 0.30
    max_heldout_loss: Annotated[float, Field(gt=0)] = 0.10
    min_rows: Annotated[int, Field(ge=1)] = 500
    max_too_long: Annotated[float, Field(ge=0, lt=1)] = 0.01
    non_inferiority_margin: Annotated[float, Field(gt=0, lt=1)] = 0.02
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = 0.95


def judge_evaluation(gate: EvaluationGate, results: Mapping[str, Any], scores: Iterable[Mapping[str, Any]]) -> Verdict:
    """Return the verdict on one evaluation.

    Args:
        results: the evaluation's `results.json`.
        scores: the rows of its `scores.jsonl`.

    Returns:
        "fail" where a limit is missed or the evaluation cannot be believed (a figure that is missing or not a
        number, rows that are missing or doubled, a table that does not follow from its rows); "inconclusive" where
        more rows could decide; "pass" otherwise.
    """
    verdict = _judged(gate, results, list(scores))
    return replace(verdict, limits=_limits(gate, verdict.figures))


def _judged(gate: EvaluationGate, results: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> Verdict:
    try:
        defects = _defects(results, rows)
    except (AttributeError, TypeError):
        defects = [f"results.json and scores.jsonl do not have the shape of an evaluation: {_REMEDY}"]
    if defects:
        return Verdict("fail", tuple(defects))
    figures = {f"{model}_{key}": value for model, means in _means(rows).items() for key, value in means.items()}
    defects = _differences(results["models"], figures)
    if defects:
        return Verdict("fail", tuple(defects), figures)

    figures["rows"] = float(len(rows))
    figures["too_long"] = max(_too_long(rows).values()) / len(rows)
    figures["gain"] = figures["tuned_exact_match"] - max(figures[f"{base}_exact_match"] for base in BASES)
    failures, doubts = _absolute(gate, figures, len(rows))
    failures += _lengths(gate, rows)
    if CHAMPION in results["models"]:
        against, doubt = _against_champion(gate, rows, figures)
        failures += against
        doubts += doubt
    if failures:
        return Verdict("fail", tuple(failures), figures)
    if doubts:
        return Verdict("inconclusive", tuple(doubts), figures)
    return Verdict("pass", (), figures)


def _defects(results: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return why the evaluation cannot be judged at all; nothing where it can."""
    models = results.get("models")
    if not isinstance(models, Mapping):
        return [f"results.json has no table of models: {_REMEDY}"]
    missing = [name for name in (*BASES, TUNED) if name not in models]
    if missing:
        return [f"results.json has no figures for {', '.join(missing)}: {_REMEDY}"]
    if not rows:
        return ["no held-out row was scored: give the recipe a held-out set, or raise curate.heldout_fraction"]
    if results.get("rows") != len(rows):
        return [f"results.json speaks of {results.get('rows')} rows, scores.jsonl holds {len(rows)}: {_REMEDY}"]
    seen: set[Any] = set()
    for number, row in enumerate(rows, start=1):
        if row.get("id") in seen:
            return [f"scores.jsonl line {number}: row {row.get('id')} was scored twice: {_REMEDY}"]
        seen.add(row.get("id"))
        if set(row.get("scores") or ()) != set(models):
            return [
                f"scores.jsonl line {number} (row {row.get('id')}) does not hold the models of the table: {_REMEDY}"
            ]
        for name, score in row["scores"].items():
            too_long = score.get("too_long", 0)
            if too_long not in (0, 1):
                return [f"scores.jsonl line {number}: the too_long of {name} is neither 0 nor 1: {_REMEDY}"]
            unread = too_long == 1 and score.get("tokens") == 0 and score.get("loss") is None
            needed = ("exact_match",) if unread else ("exact_match", "loss")
            for key, value in ((key, score.get(key)) for key in needed):
                if not is_number(value):
                    return [
                        f"the {key} of {name} on row {row.get('id')} (scores.jsonl line {number}) is "
                        f"{'missing' if value is None else value}: a model that gives NaN cannot be released"
                    ]
            if score["exact_match"] not in (0, 1):
                return [f"scores.jsonl line {number}: the exact_match of {name} is neither 0 nor 1: {_REMEDY}"]
            if too_long and score["exact_match"]:
                return [f"scores.jsonl line {number}: {name} is right on a row that is too long for it: {_REMEDY}"]
            if unread:
                continue
            if not 0 <= score["loss"] <= _LARGEST:
                return [
                    f"scores.jsonl line {number}: the loss of {name} is {score['loss']}, and no model has such a "
                    f"loss: {_REMEDY}"
                ]
            if not is_number(score.get("tokens")) or not 1 <= score["tokens"] <= _LARGEST:
                return [f"scores.jsonl line {number}: {name} was scored on no answer token: {_REMEDY}"]
    if unread_by := [name for name in models if not any(row["scores"][name]["tokens"] for row in rows)]:
        return [
            f"every held-out row is longer than {unread_by[0]} takes: raise evaluate.max_tokens, or take shorter rows"
        ]
    return []


def _means(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Return exact match a row and held-out loss an answer token, of every model."""
    means = {}
    for name in rows[0]["scores"]:
        scores = [row["scores"][name] for row in rows]
        read = [score for score in scores if score["tokens"]]
        means[name] = {
            "exact_match": sum(score["exact_match"] for score in scores) / len(scores),
            "heldout_loss": math.fsum(score["loss"] * score["tokens"] for score in read)
            / math.fsum(score["tokens"] for score in read),
        }
    return means


def _too_long(rows: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Return how many rows were too long for each model. An evaluation of version 0.1 has none: it refused them."""
    return {name: sum(row["scores"][name].get("too_long", 0) for row in rows) for name in rows[0]["scores"]}


def _differences(models: Mapping[str, Any], figures: Mapping[str, float]) -> list[str]:
    differing = []
    for name, means in models.items():
        for key in ("exact_match", "heldout_loss"):
            stated = means.get(key) if isinstance(means, Mapping) else None
            found = figures[f"{name}_{key}"]
            if not is_number(stated) or not math.isclose(stated, found, rel_tol=_TOLERANCE, abs_tol=_TOLERANCE):
                differing.append(f"results.json gives {name} {key} {stated}, its rows give {found:.6g}: {_REMEDY}")
    return differing


def _absolute(gate: EvaluationGate, figures: Mapping[str, float], rows: int) -> tuple[list[str], list[str]]:
    failures, doubts = [], []
    on = f"({rows:,} held-out rows)"
    if figures["tuned_exact_match"] < gate.min_exact_match:
        failures.append(
            f"exact match {_share(figures['tuned_exact_match'])} is below {_share(gate.min_exact_match)} {on}"
        )
    # The limits are decimal fractions and the gain a difference of two: without the tolerance .90 - .60 misses .30.
    if figures["gain"] < gate.min_gain - _TOLERANCE:
        best = max(figures[f"{base}_exact_match"] for base in BASES)
        failures.append(
            f"gain {_share(figures['gain'])} over the base model's best {_share(best)} is below "
            f"{_share(gate.min_gain)} {on}"
        )
    if figures["tuned_heldout_loss"] > gate.max_heldout_loss:
        failures.append(
            f"held-out loss {_share(figures['tuned_heldout_loss'])} is above {_share(gate.max_heldout_loss)} {on}"
        )
    if rows < gate.min_rows:
        doubts.append(f"{rows:,} held-out rows decide nothing: {gate.min_rows - rows:,} more are needed (min_rows)")
    return failures, doubts


def _lengths(gate: EvaluationGate, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    return [
        f"{count:,} of {len(rows):,} held-out rows ({count / len(rows):.2%}) are too long for {name} to give the right "
        f"answer, at most {gate.max_too_long:.2%} may be (max_too_long): raise evaluate.max_new_tokens or "
        "evaluate.max_tokens, or take shorter rows"
        for name, count in _too_long(rows).items()
        if count / len(rows) > gate.max_too_long
    ]


def _pair(scores: Mapping[str, Mapping[str, Any]]) -> tuple[bool, bool]:
    """Return whether the tuned model and the champion are right on a row.

    A row that is too long for the champion alone counts as one that it answers rightly: a model is not better because
    the other one was not asked.
    """
    tuned, champion = scores[TUNED], scores[CHAMPION]
    spared = champion.get("too_long", 0) == 1 and tuned.get("too_long", 0) == 0
    return tuned["exact_match"] == 1, champion["exact_match"] == 1 or spared


def _against_champion(
    gate: EvaluationGate, rows: Sequence[Mapping[str, Any]], figures: dict[str, float]
) -> tuple[list[str], list[str]]:
    """Return failures and doubts, and add the difference and its interval to `figures`."""
    counts = PairedCounts.of(_pair(row["scores"]) for row in rows)
    interval = paired_difference_interval(counts, gate.confidence)
    figures["champion_difference"] = counts.difference
    figures["champion_difference_lower"], figures["champion_difference_upper"] = interval
    margin = gate.non_inferiority_margin
    if interval.lower >= -margin:
        return [], []
    observed = (
        f"exact match {_share(figures['tuned_exact_match'])} against the champion's "
        f"{_share(figures['champion_exact_match'])}, difference {_share(counts.difference)} "
        f"({gate.confidence:.0%} interval {_share(interval.lower)} to {_share(interval.upper)}, "
        f"{len(rows):,} held-out rows)"
    )
    if interval.upper < -margin:
        return [f"{observed}: worse by more than the margin of {_share(margin)}"], []
    enough = rows_to_decide(counts, margin, gate.confidence)
    needed = (
        f"about {enough - len(rows):,} more rows are needed if the shares stay as they are"
        if enough is not None
        else "it lies so close to the margin that more rows would not decide"
    )
    return [], [f"{observed}: not decided at a margin of {_share(margin)}; {needed}"]


def _limits(gate: EvaluationGate, figures: Mapping[str, float]) -> tuple[Limit, ...]:
    """Return the limits for which there is a figure."""
    rows = [
        ("exact match, tuned", "tuned_exact_match", gate.min_exact_match, True, ""),
        ("gain over the base's best", "gain", gate.min_gain, True, ""),
        ("held-out loss, tuned", "tuned_heldout_loss", gate.max_heldout_loss, False, "nats an answer token"),
        ("held-out rows", "rows", gate.min_rows, True, ""),
        ("share of rows too long", "too_long", gate.max_too_long, False, "of the model that has the most"),
        (
            "not worse than the champion",
            "champion_difference_lower",
            -gate.non_inferiority_margin,
            True,
            f"lower end of the {gate.confidence:.0%} interval of the paired difference",
        ),
    ]
    return tuple(
        Limit(
            name=name,
            observed=_number(figures[key]),
            limit=f"at {'least' if at_least else 'most'} {_number(limit)}",
            # The gain is a difference of two decimal fractions, and is judged with the same tolerance.
            kept=figures[key] >= limit - (_TOLERANCE if key == "gain" else 0) if at_least else figures[key] <= limit,
            note=note,
        )
        for name, key, limit, at_least, note in rows
        if key in figures
    )


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 10 else f"{value:.4f}".rstrip("0").rstrip(".").replace("-", "−")


def _share(value: float) -> str:
    """Return two to four decimals without a leading zero: ".80", "-.0214"."""
    text = f"{value:.4f}"
    for _ in range(2):
        text = text.removesuffix("0")
    return text.replace("0.", ".", 1) if abs(value) < 1 else text


GATE = Gate(
    job="evaluate",
    limits=EvaluationGate,
    files=("results.json", "scores.jsonl"),
    judge=judge_evaluation,
    remedy="Compare the answers with the references in answers.jsonl of {artifact}, then correct the data set or the "
    "recipe.",
)
