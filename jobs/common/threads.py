"""How many threads a job computes with: as many as its model is worth, on the cores that this process may use.

A thread costs time of its own at the end of each operation, where all of them wait for the slowest; only operations on
large weights win more than that. The order in which numbers are summed depends on the number of threads, as it does on
the processor, so that results of a large model agree between machines to rounding. A small one has one thread anywhere.
"""

from __future__ import annotations

import os
from math import floor
from pathlib import Path

from include.errors import ConfigurationError
from include.job_environment import CORES

THREADS = "OMP_NUM_THREADS"
"""Environment variable of OpenMP, and of the libraries that do without it: what a user or a pod sets holds."""

PARAMETERS_PER_THREAD = 2_500_000
"""Weights that are worth a thread: from 5 million on a second one nearly doubles the speed of training, and at 0.8
million it slows answers down (docs/figures.md)."""

BY_MODEL = "ANEMONE_THREADS_BY_MODEL"
"""Environment variable: set where `THREADS` is this module's, and not the user's. Ranks inherit both."""

_CGROUPS = Path("/sys/fs/cgroup")


def limit_libraries() -> None:
    """Let every library compute with one thread, where the environment names no number; a model may raise torch's.

    To be called before any of them is imported. Most of a job gains nothing from threads, and in a pod a library would
    start one for each core of the node. Waiting threads sleep: on a machine that does other work, too, threads that
    wait in a loop take the time of those that they wait for, and two become several times slower than one.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if THREADS not in os.environ:
        os.environ.update({THREADS: "1", BY_MODEL: "1"})


def threads_for(parameters: int, cores: int) -> int:
    """Return how many threads a model of `parameters` weights is worth: at least 1, at most `cores`."""
    return max(1, min(cores, parameters // PARAMETERS_PER_THREAD))


def cores(cgroups: Path = _CGROUPS) -> int:
    """Return how many cores this process may use: its share of the machine, and its container's CPU limit.

    The share is what its starter says (`include.job_environment.CORES`), or else every core that it may run on.

    Source of the limit: cpu.max and cpu.cfs_quota_us (kernel documentation, cgroup-v2 and sched-bwc). A container sees
    its own group as the root.

    Raises:
        ConfigurationError: the starter names no number.
    """
    usable, quota = len(os.sched_getaffinity(0)), _quota(cgroups)
    try:
        share = int(os.environ.get(CORES, usable))
    except ValueError:
        raise ConfigurationError(
            f"{CORES} is {os.environ[CORES]!r}: set it to a number of cores, or not at all"
        ) from None
    return max(1, min(usable, share, usable if quota is None else floor(quota)))


def _quota(cgroups: Path) -> float | None:
    """Return the CPU limit in cores, or None where there is none."""
    try:
        quota, period = (cgroups / "cpu.max").read_text(encoding="ascii").split()
    except (OSError, ValueError):
        try:
            quota = (cgroups / "cpu" / "cpu.cfs_quota_us").read_text(encoding="ascii").strip()
            period = (cgroups / "cpu" / "cpu.cfs_period_us").read_text(encoding="ascii").strip()
        except OSError:
            return None
    return int(quota) / int(period) if quota.isdigit() else None
