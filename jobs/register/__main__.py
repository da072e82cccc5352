"""`python -m jobs.register`: make the merged model a candidate in MLflow."""

from __future__ import annotations

import json

from include.specs.register import Spec
from jobs.common.registry.client import connect, retryable
from jobs.common.runtime import Job, main
from jobs.register.candidate import describe


def run(job: Job[Spec]) -> None:
    """Describe the candidate, register it, and write `candidate.json`."""
    candidate, champion = describe(job.spec)
    # Everything before may have been reused: what is registered is verified byte by byte once more.
    job.input("merged")
    client = connect()
    from jobs.register.registry import register

    with retryable(f"register {candidate.name}"):
        version = register(client, candidate)
    job.event("registered", model=candidate.model, version=version, champion=champion["version"] or "none")
    job.metrics["version"] = version
    record = {
        "model": candidate.model,
        "version": version,
        "artifact": {"uri": candidate.uri, "digest": candidate.digest},
        "champion_version": champion["version"],
        "metrics": {
            name.removeprefix("evaluate."): value
            for name, value, _ in candidate.measurements
            if name.startswith("evaluate.")
        },
        "resolved_recipe": job.spec.config.resolved_recipe,
    }
    (job.output / "candidate.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main("register", run)
