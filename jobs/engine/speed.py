"""Measure how fast an engine answers: a figure that is recorded, and that no limit applies to."""

from __future__ import annotations

import time
from collections.abc import Sequence

from jobs.engine.builder import Engine

_SECONDS = 0.5
"""CPU time spent on each batch size, at most one round more."""


def tokens_per_cpu_second(
    engine: Engine, prompts: Sequence[Sequence[int]], *, batch_size: int, max_new_tokens: int, end_ids: Sequence[int]
) -> float:
    """Return answer tokens (end tokens included) a CPU-second of this process, the reading of prompts included."""
    written, start = 0, time.process_time()
    while True:
        for first in range(0, len(prompts), batch_size):
            answers = engine.greedy(
                prompts[first : first + batch_size],
                max_new_tokens=max_new_tokens,
                end_ids=end_ids,
                batch_size=batch_size,
            )
            written += sum(len(answer.ids) + answer.finished for answer in answers)
            spent = time.process_time() - start
            if spent >= _SECONDS:
                return written / spent
