"""Arguments that the tasks of every DAG share: owner, retries, who is notified."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from operators.notifications import failure_callbacks

RETRIES: dict[str, Any] = {
    "retries": 4,
    "retry_delay": timedelta(seconds=5),
    "retry_exponential_backoff": 2.0,
    "max_retry_delay": timedelta(seconds=40),
}
"""The pauses are at least 5, 10, 20 and 40 s: short after a crash, and together longer than the restart of a store or a
database. An error that another try cannot cure is not retried (`include.job_plan`). On a cluster a training has more
retries (`cluster.retries` of the platform): a preemption is no fault of its own.
"""

LONG_RETRIES: dict[str, Any] = {
    "retries": 30,
    "retry_delay": timedelta(seconds=20),
    "retry_exponential_backoff": 0,
}
"""For a task that talks to a service (the canary controller, MLflow): ten minutes, in which the service can restart."""


FIRST_IN_QUEUE: dict[str, Any] = {"priority_weight": 1000, "weight_rule": "absolute"}
"""For a short task that others wait for: it takes the next free slot, before the stages of runs that go on."""


def default_args() -> dict[str, Any]:
    """Return a DAG's `default_args`: the owner, `RETRIES`, and the platform's notifications of failures."""
    return {"owner": "anemone", **RETRIES, **failure_callbacks()}
