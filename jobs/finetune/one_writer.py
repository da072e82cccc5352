"""Let node 0 write the whole of a checkpoint, where nodes share no file system.

torch's distributed checkpoint spreads what several ranks hold alike over all of them, each of which writes its part
into what AutoModel takes to be one folder. With several nodes everything is held by node 0, too (see
`jobs.finetune.automodel`), so that the lowest rank that has a part can write it.
"""

from __future__ import annotations

from typing import Any


def adapt() -> None:
    """Change the planners of AutoModel's checkpoints in this process.

    Raises:
        AttributeError: AutoModel no longer has what is adapted here (0.7.0 has).
    """
    from nemo_automodel.components.checkpoint import checkpointing

    for name in ("_ModelSavePlanner", "_OptimizerSavePlanner"):
        setattr(checkpointing, name, _by_the_lowest_rank(getattr(checkpointing, name)))


def _by_the_lowest_rank(planner: type) -> type:
    class OneWriter(planner):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            self.dedup_save_to_lowest_rank = True

    return OneWriter
