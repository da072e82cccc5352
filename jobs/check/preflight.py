"""What the stages after the check will ask of the rows, as expectations beside those of the suite.

It is told before anything is trained. The stages keep their own refusals, for what is run without a check.
"""

from __future__ import annotations

from typing import Any

from include.specs.check import Config, Evaluation, Expectation, ExpectationMeta, Suite, Training
from include.statistics import rows_to_bring, rows_to_compare


def with_preflight(config: Config, funnel: dict[str, Any]) -> Suite:
    """Return the suite with what the stages after the check ask of the rows.

    Of two expectations of the same thing the stricter one stays.

    Args:
        funnel: curation's `funnel.json`.
    """
    expectations = list(config.suite.expectations)
    for ours in _preflight(config, funnel):
        same = next((n for n, theirs in enumerate(expectations) if _subject(theirs) == _subject(ours)), None)
        if same is None:
            expectations.append(ours)
        elif not _as_strict(expectations[same], ours, {"max_tokens": config.max_tokens}):
            named = ours.meta.model_copy(update={"name": expectations[same].meta.name})
            expectations[same] = ours.model_copy(update={"meta": named})
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
    return [
        _figure("rows_held_out", "rows_heldout", _rows_needed(evaluation, funnel), evaluation.min_rows),
        _empty("held_out_too_long", "too_long", f"{too_long}: evaluate.max_new_tokens, max_tokens", share),
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
            said += f", and raise evaluate.rows from {evaluation.rows:,}"
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


def _as_strict(theirs: Expectation, ours: Expectation, parameters: dict[str, float]) -> bool:
    """Return whether an expectation of the suite asks for at least as much as ours of the same column does."""

    def bound(key: str, default: float) -> float:
        value = theirs.kwargs.get(key)
        if isinstance(value, dict):
            value = parameters.get(value.get("$PARAMETER", ""))
        return default if value is None else value

    mine = ours.kwargs
    if any(theirs.kwargs.get(key) for key in ("strict_min", "strict_max", "row_condition")):
        return False
    return (
        bound("mostly", 1) >= mine.get("mostly", 1)
        and ("min_value" not in mine or bound("min_value", float("-inf")) >= mine["min_value"])
        and ("max_value" not in mine or bound("max_value", float("inf")) <= mine["max_value"])
        and mine.get("value_set") == theirs.kwargs.get("value_set")
    )
