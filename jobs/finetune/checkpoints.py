"""Checkpoints as artifacts: committed whole or not at all, and verified before a training resumes from them.

The files of a checkpoint are `automodel/` (AutoModel's own folder: weights, optimizer, random state, position in the
data), `best/` (the weights with the lowest validation loss so far, where there was a validation) and the curve so far
(`loss.jsonl`, `validation.jsonl`).
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from include.artifacts.manifest import InputEntry
from include.artifacts.naming import checkpoint_name
from include.artifacts.store import Store
from include.durable import copy_tree, move_tree
from include.errors import ArtifactError
from include.specs.finetune import Spec
from jobs.common.runtime import record_provenance
from jobs.finetune.curve import Curve

AUTOMODEL = "automodel"
BEST = "best"

Report = Callable[..., None]
"""`Job.event`, or its counterpart in a rank: an event's name, then its fields."""


def commit(
    spec: Spec,
    step: int,
    *,
    automodel: Path,
    best: Path | None,
    curve: Curve,
    started: datetime,
    on_progress: Callable[[], None],
) -> bool:
    """Publish the state after optimizer step `step`. `automodel` is moved, not copied.

    Args:
        best: AutoModel's folder of the best weights so far.
        started: when this try started, for the manifest.
        on_progress: called, by several threads, whenever another piece was copied, read or stored.

    Returns:
        Whether there is now a sound checkpoint of this step (this one, or an equal one of another try).
    """
    store = Store(spec.output.store, existing=True)
    with store.attempt(checkpoint_name(spec.output.name, step), on_progress=on_progress) as attempt:
        move_tree(automodel, attempt.files / AUTOMODEL, on_progress)
        # Names this try's folders; AutoModel would compare them with the next try's and warn.
        (attempt.files / AUTOMODEL / "config.yaml").unlink(missing_ok=True)
        if best is not None:
            copy_tree(best, attempt.files / BEST, on_progress)
        curve.write(attempt.files)
        try:
            attempt.commit(
                job=spec.job,
                inputs={key: InputEntry(uri=value.uri, digest=value.digest) for key, value in spec.inputs},
                config=spec.config.model_dump(mode="json"),
                code=spec.output.code,
                metrics={"step": step, "loss": curve.training[-1]["loss"]},
                provenance=record_provenance(started),
            )
        except ArtifactError:
            return False
    return True


def restore(store: Store, run: str, folder: Path, report: Report) -> Path | None:
    """Copy the newest sound checkpoint of `run` into `folder`, which must not exist.

    One that is half-written or was altered is reported, and the one before it is tried.

    Returns:
        `folder`, or None where there is no sound checkpoint.
    """
    prefix = checkpoint_name(run, 0).removesuffix("0" * 8)
    for name in reversed(store.names(prefix)):
        try:
            store.lay_out(name, folder)
        except ArtifactError as error:
            report("checkpoint_skipped", checkpoint=name, reason=str(error))
            continue
        return folder
    return None


def describe(folder: Path | None) -> str:
    """Return in words from which state a training starts: all nodes have to start from the same one."""
    return "the base model" if folder is None else f"the checkpoint of step {steps(folder)}"


def steps(folder: Path | None) -> int:
    """Return the number of optimizer steps that the checkpoint in `folder` has behind it; 0 for None."""
    return 0 if folder is None else len(Curve.read(folder).training)
