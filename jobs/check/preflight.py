"""What the stages after the check will ask of the rows, as expectations beside those of the suite.

It is told before anything is trained. The stages keep their own refusals, for what is run without a check.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from include.specs.check import Config, Evaluation, Expectation, ExpectationMeta, Suite, Training
from include.statistics import rows_to_bring, rows_to_compare


def with_preflight(config: Config, funnel: dict[str, Any]) -> Suite:
    """Return the suite with what the stages after the check ask of the rows.

    Of two expectations of the same thing the stricter one stays; where neither is, both do.

    Args:
        funnel: curation's `funnel.json`.
    """
    expectations, parameters = list(config.suite.expectations), {"max_tokens": config.max_tokens}
    for ours in _preflight(config, funnel):
        same = [n for n, theirs in enumerate(expectations) if _subject(theirs) == _subject(ours)]
        if any(_implies(expectations[n], ours, parameters) for n in same):
            continue
        looser = next((n for n in same if _implies(ours, expectations[n], parameters)), None)
        if looser is not None:
            expectations[looser] = _renamed(ours, expectations[looser].meta.name)
        elif any(theirs.meta.name == ours.meta.name for theirs in expectations):
            expectations.append(_renamed(ours, f"{ours.meta.name}_needed"))
        else:
            expectations.append(ours)
    return config.suite.model_copy(update={"expectations": tuple(expectations)})


def _preflight(config: Config, funnel: dict[str, Any]) -> list[Expectation]:
    found: list[Expectation] = []
    if config.training is not None:
        found += _training(config.training)
    if config.evaluation is not None:
        found += _evaluation(config.evaluation, funnel)
    return found


def _training(training: Training) -> list[Expectation]:
    ranks = f"rows for each of finetune.processes, {training.processes}, to have one"
    return [
        _between("token_length", "rows", "tokens", "every row, chat template included, fits the model",
                 min_value=1, max_value=training.max_tokens),
        _between("answer_length", "rows", "trained_tokens", "every row has an answer to train on", min_value=1),
        _figure("rows_for_training", "rows_train", ranks, training.processes),
        _figure("rows_for_validation", "rows_validation", ranks, training.processes),
    ]  # fmt: skip


def _evaluation(evaluation: Evaluation, funnel: dict[str, Any]) -> list[Expectation]:
    share = max(0.0, 1 - evaluation.max_too_long - 1e-9)
    too_long = "held-out rows that are too long to be answered count as wrong"
    remedy = "raise evaluate.max_new_tokens or evaluate.max_tokens"
    return [
        _figure("rows_held_out", "rows_heldout", _rows_needed(evaluation, funnel), evaluation.min_rows),
        _empty("held_out_too_long", "too_long", f"{too_long}: {remedy}", share),
        _empty("held_out_few_shot", "too_long_few_shot", f"{too_long}, after a training example, too", share),
    ]


def _rows_needed(evaluation: Evaluation, funnel: dict[str, Any]) -> str:
    """Return in words what the evaluation gate needs, and what to do where it is more than there is."""
    rows, fraction = funnel["splits"]["heldout"], evaluation.heldout_fraction
    split_off = sum(funnel["splits"].values()) == funnel["kept"] and fraction > 0

    def remedy(wanted: int) -> str:
        if not split_off:
            return f"{wanted - rows:,} more are needed in the held-out set"
        bring = rows_to_bring(wanted, fraction)
        return (
            f"{wanted - rows:,} more are needed, so bring {bring:,} rows that survive cleaning, of which "
            f"{fraction:g} are held out"
        )

    said = "held-out rows that the evaluation gate needs, gates.evaluation.min_rows"
    if rows < evaluation.min_rows:
        said += f": {remedy(evaluation.min_rows)}"
    alike = rows_to_compare(evaluation.non_inferiority_margin, evaluation.confidence)
    if alike is not None and max(rows, evaluation.min_rows) < alike:
        said += f"; to show that a model is as good as a champion takes {alike:,}: {remedy(alike)}"
        if evaluation.rows < alike:
            said += f", and raise evaluate.rows to {alike}"
    return said


def _between(name: str, table: Any, column: str, description: str, **bounds: float) -> Expectation:
    return Expectation(
        type="expect_column_values_to_be_between",
        kwargs={"column": column, **bounds},
        description=description,
        meta=ExpectationMeta(name=name, table=table),
    )


def _figure(name: str, column: str, description: str, at_least: int) -> Expectation:
    return Expectation(
        type="expect_column_max_to_be_between",
        kwargs={"column": column, "min_value": at_least},
        description=description,
        meta=ExpectationMeta(name=name, table="figures"),
    )


def _empty(name: str, column: str, description: str, share: float) -> Expectation:
    return Expectation(
        type="expect_column_values_to_be_in_set",
        kwargs={"column": column, "value_set": [""], "mostly": share},
        description=description,
        meta=ExpectationMeta(name=name, table="heldout"),
    )


def _subject(expectation: Expectation) -> tuple[Any, ...]:
    return expectation.type, expectation.meta.table, expectation.kwargs.get("column")


def _renamed(expectation: Expectation, name: str) -> Expectation:
    return expectation.model_copy(update={"meta": expectation.meta.model_copy(update={"name": name})})


_COMPARED = {"column", "min_value", "max_value", "mostly", "value_set"}


def _implies(one: Expectation, other: Expectation, parameters: Mapping[str, float]) -> bool:
    """Return whether data that meets `one` meets `other`, which is of the same column, in any case."""
    if any(value for each in (one, other) for key, value in each.kwargs.items() if key not in _COMPARED):
        return False

    def bounds(key: str, default: float) -> tuple[float, float]:
        found = []
        for each in (one, other):
            value = each.kwargs.get(key)
            if isinstance(value, dict):
                value = parameters.get(value.get("$PARAMETER", ""))
            found.append(default if value is None else value)
        return found[0], found[1]

    least, most, share = bounds("min_value", -math.inf), bounds("max_value", math.inf), bounds("mostly", 1)
    return (
        least[0] >= least[1]
        and most[0] <= most[1]
        and share[0] >= share[1]
        and one.kwargs.get("value_set") == other.kwargs.get("value_set")
    )
