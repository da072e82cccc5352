"""`python -m jobs.report`: one page and one model card of a run."""

from __future__ import annotations

from include.specs.report import Spec
from jobs.common.runtime import Job, main
from jobs.report.build import build
from jobs.report.card import render_card
from jobs.report.page import render_page


def run(job: Job[Spec]) -> None:
    """Gather the record, and write it as JSON, as a page and as a card."""
    record = build(job.spec)
    for role, reason in record.missing.items():
        job.event("missing", role=role, because=reason)
    (job.output / "report.json").write_text(record.model_dump_json(indent=1) + "\n", encoding="utf-8")
    (job.output / "report.html").write_text(render_page(record), encoding="utf-8")
    card = render_card(record)
    if card is not None:
        (job.output / "MODEL_CARD.md").write_text(card, encoding="utf-8")
    job.metrics["verdict"] = record.verdict.line
    job.metrics["missing"] = len(record.missing)
    job.event("reported", verdict=record.verdict.line)


if __name__ == "__main__":
    main("report", run)
