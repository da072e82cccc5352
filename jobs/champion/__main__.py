"""`python -m jobs.champion`: the version of the model that is the champion now, and where its bytes are."""

from __future__ import annotations

import json
from typing import Any

from include.errors import ConfigurationError
from include.specs.champion import Spec
from jobs.common.registry.artifacts import artifact_problem
from jobs.common.registry.client import connect, retryable
from jobs.common.runtime import Job, main


def run(job: Job[Spec]) -> None:
    """Look the alias up and write `champion.json`."""
    from jobs.champion.lookup import find_champion

    name = job.spec.config.model
    client = connect()
    with retryable("look the champion up"):
        champion = find_champion(client, name)
    if champion["artifact"] is not None:
        _require_there(name, champion)
    job.event("champion", model=name, version=champion["version"] or "none")
    job.metrics["version"] = champion["version"]
    (job.output / "champion.json").write_text(json.dumps(champion, indent=1) + "\n", encoding="utf-8")


def _require_there(name: str, champion: dict[str, Any]) -> None:
    uri, digest = champion["artifact"]["uri"], champion["artifact"]["digest"]
    if problem := artifact_problem(uri, digest):
        raise ConfigurationError(
            f"the champion of {name}, version {champion['version']}, was made from {uri} ({digest[:12]}), which "
            f"{problem}: bring it back, or move the alias champion in MLflow to a version whose artifact is there"
        )


if __name__ == "__main__":
    main("champion", run)
