"""Commit a checkpoint on rank 0 while the other ranks wait for it, and let the hang detector see that it goes on."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait

import torch
from torch import distributed

from jobs.finetune.heartbeat import HeartbeatSender

_TELL_SECONDS = 0.5


def commit_on_rank_0(
    commit: Callable[[Callable[[], None]], bool], heartbeat: HeartbeatSender, device: torch.device
) -> bool | None:
    """Commit on rank 0 and wait on the others until it is done. Called by all ranks.

    Rank 0 sends a heartbeat whenever the commit makes progress; its store may be slow, and it may hang. The others send
    one whenever they hear from rank 0: in one collective operation for the whole commit they would be silent, and that
    operation would time out.

    Args:
        commit: does it, given what is to be called, by any thread, after each piece.
        device: of the process group's tensors.

    Returns:
        What `commit` returned on rank 0; None on the others.
    """
    if distributed.get_world_size() == 1:
        return commit(heartbeat.beat)
    going_on = torch.ones(1, device=device)
    if distributed.get_rank() != 0:
        while going_on.item():
            distributed.broadcast(going_on, src=0)
            heartbeat.beat()
        return None
    with ThreadPoolExecutor(1, "commit") as pool:
        committed = pool.submit(commit, heartbeat.beat)
        while going_on.item():
            going_on.fill_(not wait([committed], timeout=_TELL_SECONDS).done)
            distributed.broadcast(going_on, src=0)
        return committed.result()
