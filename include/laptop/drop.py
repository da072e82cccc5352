"""`make drop RUN=<dag>/<run>`: end a run that would go on, as one that has failed."""

from __future__ import annotations

import sys

from include.errors import AnemoneError, ConfigurationError
from include.laptop import airflow as laptop
from include.laptop.rest import UNFINISHED


def main(name: str) -> None:
    """Mark the run as failed, which ends its tasks and, of a release, its rollout.

    Args:
        name: as `make up` prints it: the DAG, a slash, and the run's id.

    Raises:
        ConfigurationError: there is no such run, or it has ended.
        TryAgainError: Airflow does not answer.
    """
    dag, _, run = name.partition("/")
    if not dag or not run:
        raise ConfigurationError(f"RUN is {name!r}: name the DAG and the run, as in make drop RUN=customize/manual__…")
    airflow = laptop.client()
    found = airflow.find_run(dag, run)
    if found is None:
        raise ConfigurationError(f"there is no run {run!r} of a DAG {dag!r}: see {airflow.url}/dag_runs")
    if found["state"] not in UNFINISHED:
        raise ConfigurationError(f"{name} has ended already ({found['state']}): there is nothing to drop")
    airflow.fail(dag, run)
    print(f"Dropped {name}: it is marked as failed, and nothing of it goes on but its report.")


if __name__ == "__main__":
    try:
        main(sys.argv[1] if len(sys.argv) > 1 else "")
    except (AnemoneError, ValueError) as error:
        sys.exit(f"error: {error}")
