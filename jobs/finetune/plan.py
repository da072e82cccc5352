"""One try at a training, and what it leaves."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from include.specs.finetune import Spec


@dataclass(frozen=True)
class Plan:
    """One try at a training: what every rank needs to take part in it.

    Attributes:
        spec: what was asked for.
        base: folder of the base model (Hugging Face).
        rows: folder with the encoded rows (`jobs.finetune.dataset`), `train` and `validation`.
        scratch: folder of this try, shared by its ranks.
        micro_batch: rows that a rank holds in memory at a time.
        resume: folder of a checkpoint to resume from (`jobs.finetune.checkpoints`), or None to start at step 0.
    """

    spec: Spec
    base: Path
    rows: Path
    scratch: Path
    micro_batch: int
    resume: Path | None


@dataclass(frozen=True)
class Result:
    """The outcome of a finished training: folders, and figures.

    Attributes:
        best: AutoModel's folder of the weights with the lowest validation loss.
        parameters_trained: number of parameters that received gradients.
        tokens: tokens (padding excluded) that this try trained on.
        seconds: wall time of this try's steps, validations and checkpoints.
        curve: folder with the whole curve (`jobs.finetune.curve`).
        micro_batch: rows that a rank held in memory at a time.
        threads: that each rank computed with.
    """

    best: Path
    parameters_trained: int
    tokens: int
    seconds: float
    curve: Path
    micro_batch: int
    threads: int
