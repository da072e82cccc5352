"""`python -m jobs.promote`: MLflow's alias `champion` follows the traffic."""

from __future__ import annotations

import json

from include.errors import TryAgainError
from include.specs.promote import Spec
from jobs.runtime import Job, main
from jobs.tracking import connect


def run(job: Job[Spec]) -> None:
    """Move the alias and write `champion.json`."""
    client = connect()
    from mlflow.exceptions import MlflowException

    from jobs.promote.alias import move_alias

    model, version = job.spec.config.model, job.spec.config.version
    try:
        former = move_alias(client, model, version)
    except MlflowException as error:
        message = " ".join(str(error).split())[:300]
        raise TryAgainError(
            f"MLflow did not take version {version} of {model} as champion: {message}; doing it again is safe"
        ) from error
    job.event("champion", model=model, version=version, former=former or "none")
    job.metrics["version"] = version
    record = {"model": model, "version": version, "former": former}
    (job.output / "champion.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main("promote", run)
