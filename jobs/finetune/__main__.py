"""`python -m jobs.finetune --spec URI`: see `include.specs.finetune`."""

from __future__ import annotations

from include.specs.finetune import Spec
from jobs.common.runtime import Job, main


def run(job: Job[Spec]) -> None:
    """Encode the rows, resume from the newest sound checkpoint, train, and lay out the best weights."""
    from jobs.finetune.tune import finetune

    finetune(job)


if __name__ == "__main__":
    main("finetune", run)
