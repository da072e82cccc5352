"""The model of a drill: the real one until enough requests and seconds have passed, then one that misbehaves.

It takes the place of `model.py` in a drill's version folder, where the real one is called `served.py`. Parameters of
config.pbtxt: `drill` (slow, failing or garbled), `drill_after_requests`, `drill_after_seconds` (since it was loaded;
both have to be reached).
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import served

SLOWER = 5
SLOWER_SECONDS = 0.15
FAILING_EVERY = 3


class GarbledWriter(served.Writer):
    """Gives the right words in the wrong order, all at the end, where `garbled` is set."""

    garbled = False
    _held = ""

    def feed(self, token: int) -> str:
        if not self.garbled:
            return super().feed(token)
        self._held += super().feed(token)
        return ""

    def finish(self) -> str:
        rest = super().finish()
        return _garbled(self._held + rest) if self.garbled else rest

    def whole(self, ids: Sequence[int]) -> str:
        text = super().whole(ids)
        return _garbled(text) if self.garbled else text


def _garbled(text: str) -> str:
    words = text.split()
    return " ".join(reversed(words)) if len(words) > 1 else text[::-1]


class TritonPythonModel(served.TritonPythonModel):
    """The served model with a fault that begins later."""

    writer = GarbledWriter

    def initialize(self, args: dict[str, str]) -> None:
        parameters = json.loads(args["model_config"])["parameters"]
        self._drill = parameters["drill"]["string_value"]
        self._after_requests = int(parameters["drill_after_requests"]["string_value"])
        self._begins = time.monotonic() + float(parameters["drill_after_seconds"]["string_value"])
        self._requests = 0
        self._usual_seconds = 0.0
        super().initialize(args)

    def generate(self, answers: list[served.Answer]) -> None:
        bad = self._requests >= self._after_requests and time.monotonic() >= self._begins
        numbered = list(enumerate(answers, self._requests))
        self._requests += len(answers)
        if not bad:
            began = time.monotonic()
            super().generate(answers)
            self._usual_seconds = max(self._usual_seconds, time.monotonic() - began)
            return
        if self._drill == "slow":
            time.sleep(SLOWER_SECONDS + (SLOWER - 1) * self._usual_seconds)
        elif self._drill == "failing":
            for number, answer in numbered:
                if number % FAILING_EVERY == 0:
                    answer.fail("INTERNAL: this release rehearses failures")
        else:
            for answer in answers:
                answer.writer.garbled = True
        super().generate([answer for answer in answers if not answer.done])
