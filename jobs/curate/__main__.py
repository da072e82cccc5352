"""`python -m jobs.curate`: a snapshot cleaned, redacted, freed of duplicates and split."""

from __future__ import annotations

from include.specs.curate import Spec
from jobs.common.runtime import Job, main
from jobs.curate.parsing import read_held_out, read_rows


def run(job: Job[Spec]) -> None:
    """Read, clean and split a data set.

    Raises:
        DataError: no row has the expected columns, no row is left, or a held-out row cannot be used.
    """
    config = job.spec.config
    rows = read_rows(job.input("data"), config.mapping, where="data set")
    evaluated = read_held_out(job.input("heldout"), config.mapping) if job.spec.inputs.heldout else []

    from jobs.curate.curation import clean_held_out, curate
    from jobs.curate.output import removed_record, write

    held_out = clean_held_out(evaluated, config)
    curated = curate(rows, config, held_out, on_step=lambda step, **fields: job.event(step, **fields))
    funnel = write(curated, job.output, config)
    for reason, count in funnel["removed"].items():
        first = removed_record(next(row for row in curated.removed if row.reason == reason), config.pii)
        job.event("removed", reason=reason, rows=count, file=first["file"], line=first["line"], detail=first["detail"])
    job.metrics.update(rows_read=funnel["read"], rows_kept=funnel["kept"], share_kept=funnel["kept"] / funnel["read"])
    job.metrics.update({f"rows_{split}": rows for split, rows in funnel["splits"].items()})


if __name__ == "__main__":
    main("curate", run)
