"""`make run DATA=… RECIPE=…`: customize a model on one's own data set, and watch."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from include.errors import AnemoneError, ConfigurationError
from include.laptop import airflow as laptop
from include.laptop import up
from include.laptop.home import NotOursError
from include.laptop.report import print_report
from include.laptop.rest import wait_for_dag
from include.laptop.screen import Screen, terminal
from include.laptop.watch import CUSTOMIZE, POLL_SECONDS, Run, follow
from include.recipes import resolve

_EXAMPLE = """write it as OVERRIDES='{"finetune.steps": 200}'"""


def main(arguments: list[str] | None = None) -> int:
    """Start a run and follow it; return 0 where it registered a candidate, 1 where a gate or a failure stopped it.

    Raises:
        ConfigurationError: there are no such data, recipe or keys of it; nothing was started.
    """
    parser = argparse.ArgumentParser(prog="python -m include.laptop.run", description=__doc__)
    parser.add_argument("data", type=Path, help="a JSONL file, or a folder of shards")
    parser.add_argument("recipe", help="as <model>/<size>_<method>_<topology>")
    parser.add_argument("--overrides", default="{}", help='JSON: keys of the recipe by dotted path, as in {"a.b": 1}')
    given = parser.parse_args(arguments)
    if not given.data.name:
        raise ConfigurationError("DATA is not set: make run DATA=my.jsonl")
    data = given.data.absolute()
    if not data.exists():
        raise ConfigurationError(f"{data} does not exist: set DATA to a JSONL file or a folder of shards")
    overrides = _overrides(given.overrides)
    resolve(given.recipe, overrides)
    console = terminal()
    up.start(console.print)
    airflow = laptop.client()
    wait_for_dag(airflow, CUSTOMIZE, timeout=120)
    started = airflow.trigger(CUSTOMIZE, {"data": str(data), "recipe": given.recipe, "overrides": overrides})
    run = Run(data.name, run_id=started["dag_run_id"])
    console.print(f"{airflow.run_url(CUSTOMIZE, started['dag_run_id'])}")
    with Screen(console, [run]) as screen:
        follow(airflow, [run], screen.show, laptop.check_alive)
        while not run.ended:
            time.sleep(POLL_SECONDS)
            follow(airflow, [run], screen.show, laptop.check_alive)
    console.print()
    print_report(console, airflow, [run])
    return 0 if run.state == "success" else 1


def _overrides(text: str) -> dict[str, Any]:
    try:
        overrides = json.loads(text)
    except ValueError as error:
        raise ConfigurationError(f"OVERRIDES is not JSON ({error}): {_EXAMPLE}") from None
    if not isinstance(overrides, dict):
        raise ConfigurationError(f"OVERRIDES is not a JSON object: {_EXAMPLE}")
    return overrides


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (AnemoneError, NotOursError, ValueError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(
            "\nStopped watching; the run continues in Airflow, also after a `make down` and the next `make up`, which "
            "says how to drop it."
        )
