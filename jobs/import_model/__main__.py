"""`python -m jobs.import_model --spec URI`: a base model as an artifact."""

from __future__ import annotations

from include.specs.import_model import Spec
from jobs.common.runtime import Job, main


def run(job: Job[Spec]) -> None:
    """Fetch, copy and validate; write `model/`."""
    from jobs.import_model.source import copy, locate
    from jobs.import_model.validation import validate

    folder = locate(job.spec.config, job.scratch)
    job.event("located", progress=0.3, source=job.spec.config.source)
    left_out = copy(folder, job.output / "model")
    job.event("copied", progress=0.8, left_out=left_out)
    job.metrics.update(validate(job.output / "model"))


if __name__ == "__main__":
    main("import_model", run)
