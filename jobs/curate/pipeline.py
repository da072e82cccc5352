"""The stages of curation, in order, run in this process: to start Ray costs more than all of the work.

Every stage is a NeMo Curator stage on a `DocumentBatch`, so the same list makes a `Pipeline` on a cluster.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import pandas as pd
from nemo_curator.stages.base import ProcessingStage
from nemo_curator.stages.text.filters.score_filter import Filter, Score
from nemo_curator.tasks import DocumentBatch

from include.artifacts.naming import digest
from include.specs.curate import Config, Pii
from jobs.common.pii import redact
from jobs.curate.duplicates import MarkExactDuplicates, MarkHeldOut, MarkNearDuplicates
from jobs.curate.heuristics import heuristics
from jobs.curate.normalise import derive_texts, normalise

Stage: TypeAlias = ProcessingStage[DocumentBatch, DocumentBatch]


@dataclass
class FindPii(ProcessingStage[DocumentBatch, DocumentBatch]):
    """Replaces personal data in messages and label by placeholders; adds `pii`, the kinds found: "email phone"."""

    settings: Pii
    name: str = "find_pii"

    def inputs(self) -> tuple[list[str], list[str]]:
        return ["data"], ["messages", "label"]

    def outputs(self) -> tuple[list[str], list[str]]:
        return ["data"], ["messages", "label", "pii"]

    def process(self, batch: DocumentBatch) -> DocumentBatch:
        frame = batch.to_pandas()
        redacted, labels, found = [], [], []
        for messages, label in zip(frame["messages"], frame["label"], strict=True):
            kinds: dict[str, None] = {}
            clean = []
            for message in messages:
                content, seen = redact(message["content"], self.settings.kinds)
                kinds.update(dict.fromkeys(seen))
                clean.append({**message, "content": content})
            redacted.append(clean)
            if isinstance(label, str):
                label, seen = redact(label, self.settings.kinds)
                kinds.update(dict.fromkeys(seen))
            labels.append(label)
            found.append(" ".join(kinds) or None)
        frame["messages"], frame["label"], frame["pii"] = redacted, pd.Series(labels, frame.index, "object"), found
        return DocumentBatch(dataset_name=batch.dataset_name, data=frame, _metadata=batch._metadata)


@dataclass(frozen=True)
class Step:
    """Stages that change rows or add columns, then, where it removes any, one that filters by a column.

    Attributes:
        name: as the funnel shows it.
        explain: the detail of a removed row from its value in the filter's column.
    """

    name: str
    stages: tuple[Stage, ...]
    filter: Filter | None = None
    column: str = ""
    explain: Callable[[Any], str] = str


@dataclass(frozen=True)
class Dropped:
    """A row that a step removed: its index in the first frame, the step's name, and the detail."""

    row: int
    reason: str
    detail: str


def cleaning() -> list[Stage]:
    """Return the stages that every row goes through, held-out rows included."""
    return [normalise(), derive_texts()]


def redaction(settings: Pii) -> list[Stage]:
    """Return the stages that redact personal data and derive the texts again; none where it is to be kept."""
    return [FindPii(settings), derive_texts()] if settings.action != "keep" else []


def steps(config: Config, held_out: Sequence[dict[str, str]]) -> Iterator[Step]:
    """Yield the steps that `config` asks for. Duplicates come last, so that the row kept of a group is a sound one."""
    yield Step("normalise", tuple(cleaning()))
    yield _empty_message_step("empty_request", "user")
    yield _empty_message_step("empty_answer", "assistant")
    for heuristic in heuristics(config.filters):
        score = f"score_{heuristic.reason}"
        yield Step(
            heuristic.reason,
            (Score(heuristic.filter, score_field=score, text_field="text"),),
            Filter(heuristic.filter, filter_field=score),
            score,
            heuristic.explain,
        )
    if found := redaction(config.pii):
        dropping = Filter(_is_missing, filter_field="pii") if config.pii.action == "drop" else None
        yield Step("pii", tuple(found), dropping, "pii", lambda kinds: f"holds {kinds}")
    yield Step(
        "exact_duplicate",
        (AddId(), MarkExactDuplicates()),
        Filter(_is_missing, filter_field="exact_duplicate_of"),
        "exact_duplicate_of",
        lambda place: f"same as {place}",
    )
    if held_out:
        yield Step(
            "held_out",
            (MarkHeldOut(held_out, config.near_duplicates, config.seed),),
            Filter(_is_missing, filter_field="held_out_as"),
            "held_out_as",
            lambda row: f"is held-out row {row}",
        )
    if config.near_duplicates is not None:
        yield Step(
            "near_duplicate",
            (MarkNearDuplicates(config.near_duplicates, config.seed),),
            Filter(_is_missing, filter_field="near_duplicate_of"),
            "near_duplicate_of",
            lambda place: f"nearly the same as {place}",
        )


def _empty_message_step(name: str, role: str) -> Step:
    def has_texts(messages: Sequence[dict[str, str]]) -> bool:
        return first_empty_message(messages, role) is None

    def explain(messages: Sequence[dict[str, str]]) -> str:
        return f"message {first_empty_message(messages, role)} holds no text"

    return Step(name, (), Filter(has_texts, filter_field="messages"), "messages", explain)


@dataclass
class AddId(ProcessingStage[DocumentBatch, DocumentBatch]):
    """Adds `id`: 16 hex digits of the digest of the messages, so the same conversation has the same id anywhere."""

    name: str = "add_id"

    def inputs(self) -> tuple[list[str], list[str]]:
        return ["data"], ["messages"]

    def outputs(self) -> tuple[list[str], list[str]]:
        return ["data"], ["id"]

    def process(self, batch: DocumentBatch) -> DocumentBatch:
        frame = batch.to_pandas()
        frame["id"] = [digest(messages)[:16] for messages in frame["messages"]]
        return DocumentBatch(dataset_name=batch.dataset_name, data=frame, _metadata=batch._metadata)


def run_stages(stages: Sequence[Stage], batch: DocumentBatch) -> DocumentBatch:
    """Return the batch after all stages."""
    for stage in stages:
        batch = stage.process(batch)
    return batch


def run_step(step: Step, batch: DocumentBatch) -> tuple[DocumentBatch, list[Dropped]]:
    """Return the batch after a step, and the rows that the step removed. An empty batch is returned as it is."""
    if not batch.num_items:
        return batch, []
    before = run_stages(step.stages, batch)
    if step.filter is None:
        return before, []
    after = step.filter.process(before)
    values = before.to_pandas()[step.column]
    dropped = values[~values.index.isin(after.to_pandas().index)]
    return after, [Dropped(int(row), step.name, step.explain(value)) for row, value in dropped.items()]


def as_batch(frame: pd.DataFrame) -> DocumentBatch:
    """Return a frame with columns place, messages (a list of {"role", "content"}) and label as Curator's task."""
    return DocumentBatch(dataset_name="data", data=frame)


def has_visible_text(value: str) -> bool:
    """Return whether a text has a visible character: blanks and format characters (Unicode's Cf) are not."""
    return any(not character.isspace() and unicodedata.category(character) != "Cf" for character in value)


def first_empty_message(messages: Sequence[dict[str, str]], role: str) -> int | None:
    """Return the position of the first message of `role` that holds no text, or None."""
    of_role = (number for number, message in enumerate(messages) if message["role"] == role)
    return next((number for number in of_role if not has_visible_text(messages[number]["content"])), None)


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))
