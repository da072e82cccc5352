"""Which live answers are bad ones."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from include.release.rollouts import Quality
from jobs.common.conversations import normalised
from jobs.serving.canary.servers.golden import GoldenPrompt


class Checker:
    """Tells the bad answers among those that the router sampled."""

    def __init__(self, quality: Quality, golden: list[GoldenPrompt]) -> None:
        self._format = re.compile(quality.answer_format) if quality.answer_format else None
        self._references = (
            {_key(prompt.messages): normalised(prompt.reference) for prompt in golden}
            if quality.check_references
            else {}
        )

    def is_bad(self, sample: Mapping[str, Any]) -> bool:
        """Return whether a sample is failed, empty, ill-formed, or wrong where a reference is known.

        A sample is what the router's admin API gives. A reference is only compared with a greedy answer to the very
        messages of a golden prompt.
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


def _key(messages: Any) -> tuple[tuple[str, str], ...]:
    return tuple((str(message["role"]), str(message["content"])) for message in messages)
