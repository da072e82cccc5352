"""`python -m jobs.finetune`: a base model fine-tuned on a curated data set."""

from __future__ import annotations

from include.specs.finetune import Spec
from jobs.common.runtime import Job, main


def run(job: Job[Spec]) -> None:
    """Encode the rows, resume from the newest sound checkpoint, train, and write the best weights."""
    from jobs.finetune.training import finetune

    finetune(job)


if __name__ == "__main__":
    main("finetune", run)
