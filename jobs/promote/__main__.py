"""`python -m jobs.promote`: point MLflow's alias `champion` at the version that takes the traffic."""

from __future__ import annotations

import json

from include.specs.promote import Spec
from jobs.common.registry.client import connect, retryable
from jobs.common.runtime import Job, main


def run(job: Job[Spec]) -> None:
    """Move the alias to what is live, and write `champion.json`."""
    from include.release.controller_client import ControllerClient
    from jobs.promote.alias import follow_traffic
    from jobs.promote.live import live_version

    config = job.spec.config
    client = connect()
    controller = ControllerClient(config.controller_url, config.token_file)
    with retryable(f"make the live version of {config.model} the champion"):
        version, former = follow_traffic(client, config.model, lambda: live_version(controller, config.model))
    job.event("champion", model=config.model, version=version, former=former or "none")
    job.metrics["version"] = version
    record = {"model": config.model, "version": version, "former": former}
    (job.output / "champion.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main("promote", run)
