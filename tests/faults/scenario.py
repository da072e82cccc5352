"""The mark of a fault test: a scenario that reads as one, and whose result is published in docs/faults.md."""

from __future__ import annotations

import pytest


def scenario(*, given: str, when: str, then: str) -> pytest.MarkDecorator:
    """Mark a test, or one `pytest.param` of it, as a scenario of docs/faults.md.

    Tests with the same three sentences are one row of its table, with how many of them held.

    Args:
        given: what stands before, as in "a fine-tune with a checkpoint every 5 steps".
        when: what is done to it, as in "it is SIGKILLed at 30 random moments".
        then: what must hold, as in "the next try ends with the bytes of an undisturbed one".
    """
    return pytest.mark.scenario(given=given, when=when, then=then)
