"""A patch with which rank 0 saves the whole of a checkpoint, for nodes that share no file system.

torch's distributed checkpoint spreads tensors that several ranks hold over all of these ranks, each of which writes its
share into what AutoModel takes to be one folder. Node 0 holds every tensor, too (see `jobs.finetune.automodel`), so the
lowest rank that holds a tensor can save it (`dedup_save_to_lowest_rank` of torch's `DefaultSavePlanner`).
"""

from __future__ import annotations

from typing import Any


def apply() -> None:
    """Change the save planners of AutoModel's checkpoints in this process.

    Raises:
        AttributeError: AutoModel no longer has what is patched here (0.7.0 has).
    """
    from nemo_automodel.components.checkpoint import checkpointing

    for name in ("_ModelSavePlanner", "_OptimizerSavePlanner"):
        setattr(checkpointing, name, _saving_on_lowest_rank(getattr(checkpointing, name)))


def _saving_on_lowest_rank(planner: type) -> type:
    class LowestRankPlanner(planner):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            self.dedup_save_to_lowest_rank = True

    return LowestRankPlanner
