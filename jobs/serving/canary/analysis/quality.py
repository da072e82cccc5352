"""Which live answers are bad ones, and what the engine's golden prompts are."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from include.errors import DataError
from include.release.rollouts import Quality
from include.specs.base import Model

GOLDEN = "golden.jsonl"


class GoldenPrompt(Model):
    """A held-out prompt: the reference, and the engine's own greedy answer when it was built."""

    messages: tuple[dict[str, Any], ...]
    reference: str
    answer: str


def read_golden(engine: Path) -> list[GoldenPrompt]:
    """The golden prompts of an engine's files. Raises DataError where there is none, or a line is not one."""
    path = engine / GOLDEN
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise DataError(f"{path} does not hold golden prompts ({error}): build the engine again") from None
    return parse_golden(text, str(path))


def parse_golden(text: str, where: str) -> list[GoldenPrompt]:
    """The golden prompts that a file holds. Raises DataError where there is none, or a line is not one."""
    try:
        rows = [json.loads(line) for line in text.splitlines()]
        prompts = [GoldenPrompt(**{key: row[key] for key in GoldenPrompt.model_fields}) for row in rows]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{where} does not hold golden prompts ({error}): build the engine again") from None
    if not prompts:
        raise DataError(f"{where} is empty: build the engine again with held-out rows")
    return prompts


def spread(prompts: list[GoldenPrompt], most: int) -> list[GoldenPrompt]:
    """At most so many of the prompts, evenly spread over all, the same each time."""
    count = min(most, len(prompts))
    return [prompts[index * len(prompts) // count] for index in range(count)]


class Checker:
    """Tells bad answers among those that the router sampled."""

    def __init__(self, quality: Quality, golden: list[GoldenPrompt]) -> None:
        self._format = re.compile(quality.answer_format) if quality.answer_format else None
        self._references = (
            {_key(prompt.messages): normalised(prompt.reference) for prompt in golden}
            if quality.check_references
            else {}
        )

    def is_bad(self, sample: Mapping[str, Any]) -> bool:
        """Whether a sample (see the router's admin API) is failed, empty, ill-formed, or wrong where that is known.

        A reference is only compared with a greedy answer to the very messages of a golden prompt.
        """
        answer = sample["answer"]
        if sample["failed"] or sample["empty"] or answer is None:
            return True
        if self._format is not None and not self._format.fullmatch(answer.strip()):
            return True
        if not sample["greedy"] or not sample["messages"]:
            return False
        reference = self._references.get(_key(sample["messages"]))
        return reference is not None and normalised(answer) != reference


def normalised(text: str) -> str:
    """Unicode form NFC and single blanks, as the evaluation compares answers."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def _key(messages: Any) -> tuple[tuple[str, str], ...]:
    return tuple((str(message["role"]), str(message["content"])) for message in messages)
