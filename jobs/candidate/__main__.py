"""`python -m jobs.candidate`: the version that is to be released, and what it was made from."""

from __future__ import annotations

import json

from include.specs.candidate import Spec
from jobs.common.registry.client import connect, retryable
from jobs.common.runtime import Job, main


def run(job: Job[Spec]) -> None:
    """Look the version up, check that its comparison still holds, and write `candidate.json`."""
    from jobs.candidate.lookup import find_candidate, require_fresh_comparison
    from jobs.common.registry.aliases import champion_version

    registration = None
    if job.spec.inputs.registration is not None:
        registration = json.loads((job.input("registration") / "candidate.json").read_bytes())
    client = connect()
    with retryable("look the candidate up"):
        candidate = find_candidate(client, job.spec.config.model, job.spec.config.version, registration)
        champion = champion_version(client, candidate["model"])
    job.event(
        "candidate",
        model=candidate["model"],
        version=candidate["version"],
        compared_with=candidate["champion_version"] or "none",
        champion=champion or "none",
        recipe=candidate["recipe"],
    )
    require_fresh_comparison(candidate, champion)
    job.metrics["version"] = candidate["version"]
    (job.output / "candidate.json").write_text(json.dumps(candidate, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main("candidate", run)
