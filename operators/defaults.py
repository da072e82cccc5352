"""How long a task tries again, in every DAG."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

RETRIES: dict[str, Any] = {
    "retries": 4,
    "retry_delay": timedelta(seconds=5),
    "retry_exponential_backoff": 2.0,
    "max_retry_delay": timedelta(seconds=40),
}
"""For `default_args`. The pauses are 5, 10, 20 and 40 s at the least: soon after a crash, and longer in all than a
store or a database that is away for a minute. What trying again cannot mend is not tried again (`include.job_plan`).
On a cluster a training is tried more often (`cluster.retries` of the platform): a preemption is no fault of its own.
"""
