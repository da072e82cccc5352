"""Set how many threads torch computes with (`jobs.common.threads`)."""

from __future__ import annotations

import os

import torch

from jobs.common.threads import BY_MODEL, cores, threads_for


def use_threads(parameters: int, *, processes: int = 1) -> int:
    """Compute with as many threads as a model is worth, unless the environment says how many; return the number.

    Args:
        parameters: number of the model's weights.
        processes: how many share this machine's cores, each with such a model.
    """
    if BY_MODEL in os.environ:
        torch.set_num_threads(threads_for(parameters, cores() // processes))
    return torch.get_num_threads()
