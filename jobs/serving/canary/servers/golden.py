"""The golden prompts of an engine: held-out prompts with the answers that it gave when it was built."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from include.errors import DataError
from include.model import Model

GOLDEN = "golden.jsonl"
_REMEDY = "run release with refresh: [engine]"


class GoldenPrompt(Model):
    """A held-out prompt: the reference, and the engine's own greedy answer when it was built."""

    messages: tuple[dict[str, Any], ...]
    reference: str
    answer: str


def read_golden(engine: Path) -> list[GoldenPrompt]:
    """Read the golden prompts of an engine's files.

    Raises:
        DataError: there is none, or a line is not one.
    """
    path = engine / GOLDEN
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise DataError(f"{path} does not hold golden prompts ({error}): {_REMEDY}") from None
    return parse_golden(text, str(path))


def parse_golden(text: str, where: str) -> list[GoldenPrompt]:
    """Parse the golden prompts that a file holds.

    Raises:
        DataError: there is none, or a line is not one.
    """
    try:
        # Not splitlines(): a prompt or an answer may hold line separators of Unicode.
        rows = [json.loads(line) for line in text.split("\n") if line]
        prompts = [GoldenPrompt(**{key: row[key] for key in GoldenPrompt.model_fields}) for row in rows]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{where} does not hold golden prompts ({error}): {_REMEDY}") from None
    if not prompts:
        raise DataError(f"{where} is empty: {_REMEDY}")
    return prompts


def spread(prompts: list[GoldenPrompt], most: int) -> list[GoldenPrompt]:
    """Return at most so many of the prompts, evenly spread over all, the same each time."""
    count = min(most, len(prompts))
    return [prompts[index * len(prompts) // count] for index in range(count)]
