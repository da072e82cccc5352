"""The models side by side: scores with intervals, paired differences, answers before and after."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import chain, zip_longest
from typing import Any

from include.gates.evaluation import BASES, CHAMPION, TUNED
from include.statistics import PairedCounts, paired_difference_interval, wilson_interval
from jobs.report.artifacts import Artifacts
from jobs.report.masking import Mask
from jobs.report.record import Answer, Difference, Evaluation, LabelScore, Score

_ANSWERS = 10
_MOST_WRONG = 5
"""At most so many of the answers shown are wrong ones: what was won is to be seen, too."""


def describe_evaluation(artifacts: Artifacts, mask: Mask) -> Evaluation | None:
    """Return the comparison; None where nothing was evaluated."""
    results = artifacts.json("evaluation", "results.json")
    scores = artifacts.lines("evaluation", "scores.jsonl")
    answers = artifacts.lines("evaluation", "answers.jsonl")
    if results is None or not scores or answers is None:
        return None
    models = results["models"]
    right = {name: [row["scores"][name]["exact_match"] == 1 for row in scores] for name in models}
    return Evaluation(
        rows=len(scores),
        few_shot=results.get("few_shot", 0),
        scores=tuple(_score(name, means, right[name]) for name, means in models.items()),
        differences=tuple(
            _difference(name, right[TUNED], right[name])
            for name in (*BASES, CHAMPION)
            if name in models and TUNED in models
        ),
        labels=tuple(
            sorted(
                (LabelScore(label=label, **found) for label, found in results.get("labels", {}).items()),
                key=lambda found: (found.exact_match.get(TUNED, 0.0), found.label),
            )
        ),
        answers=tuple(_choose(answers, right, mask)) if {TUNED, BASES[0]} <= models.keys() else (),
    )


def _score(name: str, means: Mapping[str, Any], right: Sequence[bool]) -> Score:
    lower, upper = wilson_interval(sum(right), len(right))
    return Score(
        model=name,
        exact_match=sum(right) / len(right),
        lower=lower,
        upper=upper,
        rouge_l=means.get("rouge_l"),
        heldout_loss=means.get("heldout_loss"),
        empty_answers=means.get("empty_answers", 0),
        unfinished_answers=means.get("unfinished_answers", 0),
        rows_too_long=means.get("rows_too_long", 0),
    )


def _difference(against: str, tuned: Sequence[bool], other: Sequence[bool]) -> Difference:
    counts = PairedCounts.of(zip(tuned, other, strict=True))
    lower, upper = paired_difference_interval(counts)
    return Difference(
        against=against,
        value=counts.difference,
        lower=lower,
        upper=upper,
        won=int(counts.first_only),
        lost=int(counts.second_only),
    )


def _choose(answers: Sequence[dict[str, Any]], right: Mapping[str, Sequence[bool]], mask: Mask) -> list[Answer]:
    """Return ten rows, the same each time: first what got lost, then what is still wrong, then what was won."""
    kinds: dict[str, list[dict[str, Any]]] = {"lost": [], "still wrong": [], "won": []}
    for number, answer in enumerate(answers):
        before = any(right[name][number] for name in right if name != TUNED)
        if not right[TUNED][number]:
            kinds["lost" if before else "still wrong"].append(answer)
        elif not right[BASES[0]][number]:
            kinds["won"].append(answer)
    wrong = [(kind, answer) for kind in ("lost", "still wrong") for answer in _spread(kinds[kind])]
    won = [("won", answer) for answer in _spread(kinds["won"])]
    most_wrong = max(_MOST_WRONG, _ANSWERS - len(won))
    chosen = wrong[:most_wrong]
    return [_answer(kind, answer, mask) for kind, answer in [*chosen, *won[: _ANSWERS - len(chosen)]]]


def _spread(answers: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return in turns one of each label, within a label by id: ids are digests, so that is as good as drawn."""
    labels: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for answer in sorted(answers, key=lambda answer: answer["id"]):
        labels[answer.get("label", "")].append(answer)
    turns = zip_longest(*(labels[label] for label in sorted(labels)))
    return [answer for answer in chain.from_iterable(turns) if answer is not None]


def _answer(kind: Any, answer: Mapping[str, Any], mask: Mask) -> Answer:
    given = answer["answers"]
    return Answer(
        kind=kind,
        label=answer.get("label"),
        prompt=mask.text(answer["prompt"]),
        base=mask.text(given[BASES[0]]),
        tuned=mask.text(given[TUNED]),
        champion=mask.text(given[CHAMPION]) if CHAMPION in given else None,
        reference=mask.text(answer["reference"]),
    )
