"""The merged model's answers, which an engine has to reproduce."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from include.artifacts.store import Store
from include.errors import ConfigurationError, DataError
from include.specs.engine import Spec
from jobs.common.heldout import Row, read_rows
from jobs.common.runtime import Job

_MODEL = "tuned"
"""The name of the merged model in an evaluation."""
_REMEDY = "run customize again with refresh: [evaluate]"


class Reference(NamedTuple):
    """The held-out rows that were evaluated, in file order, with the merged model's answers.

    Attributes:
        rows: the rows, without those that were too long for the merged model.
        texts: the answer to each row.
        right: whether each answer is an exact match.
        max_tokens, max_new_tokens: where the evaluation cut answers off.
    """

    rows: list[Row]
    texts: list[str]
    right: list[bool]
    max_tokens: int
    max_new_tokens: int


def read_reference(job: Job[Spec]) -> Reference:
    """Return the answers in the input `evaluation` to the first rows of the held-out set.

    Raises:
        ConfigurationError: the evaluation is of another model or other data, or allowed longer answers than the
            engine is to give.
        DataError: it holds no answers to these rows.
    """
    config = job.spec.config
    evaluated = _evaluated_with(job.spec)
    max_new_tokens = evaluated["max_new_tokens"]
    if config.max_new_tokens < max_new_tokens:
        raise ConfigurationError(
            f"max_new_tokens: {config.max_new_tokens} is less than the {max_new_tokens} that the evaluation allowed, "
            "so its answers could not be given again: run release with the override engine.max_new_tokens: "
            f"{max_new_tokens}"
        )
    rows = read_rows(job.input("data") / "heldout.jsonl", config.rows)
    folder = job.input("evaluation")
    try:
        texts = {line["id"]: line["answers"][_MODEL] for line in _lines(folder / "answers.jsonl")}
        scores = {line["id"]: line["scores"][_MODEL] for line in _lines(folder / "scores.jsonl")}
        right = {row: bool(score["exact_match"]) for row, score in scores.items() if not score.get("too_long")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{job.spec.inputs.evaluation.uri} holds no answers and scores of the tuned model ({error!r}): {_REMEDY}"
        ) from error
    answered = [row for row in rows if row["id"] in texts and row["id"] in right]
    if not answered:
        raise DataError(
            f"{job.spec.inputs.evaluation.uri} answered none of the first {len(rows)} held-out rows: {_REMEDY}"
        )
    return Reference(
        rows=answered,
        texts=[texts[row["id"]] for row in answered],
        right=[right[row["id"]] for row in answered],
        max_tokens=evaluated["max_tokens"],
        max_new_tokens=max_new_tokens,
    )


def _evaluated_with(spec: Spec) -> dict[str, Any]:
    """Return the evaluation's configuration, having checked that it is of this model and these rows.

    Raises:
        ConfigurationError: it is of another model or data set.
        DataError: it does not exist.
    """
    store, name = Store.of(spec.inputs.evaluation.uri)
    manifest = store.manifest(name)
    if manifest is None:
        raise DataError(f"{spec.inputs.evaluation.uri} does not exist: run customize again, which evaluates anew")
    for evaluated, ours, what in (("tuned", spec.inputs.merged, "model"), ("data", spec.inputs.data, "data set")):
        recorded = manifest.inputs.get(evaluated)
        if recorded is None or recorded.digest != ours.digest:
            other = "none" if recorded is None else f"{recorded.digest[:12]} ({recorded.uri})"
            raise ConfigurationError(
                f"{spec.inputs.evaluation.uri} evaluated the {what} {other}, this run gives {ours.digest[:12]} "
                f"({ours.uri}): give the evaluation of the model that the engine is built from"
            )
    return manifest.config


def _lines(path: Path) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]
