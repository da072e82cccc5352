"""`python -m jobs.demo.generate --spec URI`: one variant of the demo's data as an artifact."""

from __future__ import annotations

from include.specs.demo.generate import Spec
from jobs.common.runtime import Job, main
from jobs.demo.generate.variants import lines


def run(job: Job[Spec]) -> None:
    """Write `data.jsonl`."""
    data = lines(job.spec.config)
    (job.output / "data.jsonl").write_text("\n".join(data) + "\n", encoding="utf-8")
    job.metrics["lines"] = len(data)


if __name__ == "__main__":
    main("generate", run)
