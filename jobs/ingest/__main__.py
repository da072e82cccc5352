"""`python -m jobs.ingest`: a verified copy of a data set's bytes."""

from __future__ import annotations

from include.artifacts.manifest import FileEntry
from include.artifacts.naming import content_digest
from include.errors import DataError
from include.specs.ingest import Spec
from jobs.common.runtime import Job, main
from jobs.ingest.snapshot import await_unchanged, copy, refuse_changed


def run(job: Job[Spec]) -> None:
    """Copy the source's files and check them line by line.

    Raises:
        TryAgainError: the source changed since the run was planned, or while it was read.
        DataError: a file is not UTF-8 JSONL, or not complete; or the content is not the one that was announced.
    """
    config = job.spec.config
    files = await_unchanged(config.source, planned=config.files, seconds=config.settle_seconds)
    total = sum(file.size for file in files)
    job.event("source", files=len(files), bytes=total)
    copies: list[FileEntry] = []
    rows = read = 0
    for number, file in enumerate(files):
        name = "data.jsonl" if len(files) == 1 else f"part-{number:05d}.jsonl"
        try:
            copied = copy(file, job.output / name, max_row_bytes=config.max_row_bytes)
        except DataError:
            # A file that is still being written looks damaged, and is complete at the next try.
            refuse_changed(config.source, files, when="while it was read")
            raise
        copies.append(FileEntry(path=name, size=file.size, sha256=copied.sha256))
        rows += copied.rows
        read += file.size
        job.event(
            "copied",
            progress=read / total,
            source=file.path,
            file=name,
            rows=copied.rows,
            bytes=file.size,
            sha256=copied.sha256,
        )
        if copied.byte_order_mark:
            job.event("byte_order_mark", file=name, note="kept in the snapshot, skipped by curation")
    refuse_changed(config.source, files, when="while it was read")
    found = content_digest(copies)
    if config.announced not in (None, found):
        raise DataError(
            f"{config.source} holds other content than was announced (announced {config.announced[:12]}, found "
            f"{found[:12]}): the new content is announced by itself and has a run of its own"
        )
    job.metrics.update(rows=rows, bytes=total, files=len(files))


if __name__ == "__main__":
    main("ingest", run)
