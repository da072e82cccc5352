"""What stores, tells and measures: every job runs in it, and no result depends on how it is written, up to
rounding: the number of threads, like the processor, orders the sums of a large model.

Its code is no part of a job's identity, so that a reworded message or a comment in the store trains nothing again. One
number stands for all of it.
"""

from __future__ import annotations

CONTRACT_VERSION = 1
"""Part of every job's identity.

Raise it with a change below after which a job would commit other files for the same spec, or after which what was
committed before must not be reused: another way to hash, to lay out, or to read an input. Everything is then made anew,
once. A message, a log line, a retry, a faster way to the same bytes is no reason.
"""

MODULES = (
    "include.artifacts.*",
    "include.code_identity.*",
    "include.durable",
    "include.errors",
    "include.events",
    "include.home",
    "include.job_environment",
    "include.model",
    "include.specs",
    "include.specs.base",
    "jobs.common.metrics",
    "jobs.common.runtime",
    "jobs.common.threads",
)
"""`package.*` is a package with all that is in it; without the star only the module itself.

They import nothing of the project but each other: what they imported would be hidden behind them.
"""


def covers(module: str) -> bool:
    """Return whether a module, by its dotted name, is behind the contract."""
    return any(
        module == name or (name.endswith(".*") and f"{module}.".startswith(name.removesuffix("*"))) for name in MODULES
    )
