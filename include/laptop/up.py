"""`make up`: Airflow and the serving side, and traffic where it is asked for; what runs already is left alone."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

from include.errors import AnemoneError, TryAgainError
from include.home import home, port
from include.laptop import airflow as laptop
from include.laptop.components import claim_port, exclusive
from include.laptop.home import NotOursError, make_home, python_of, run_folder
from include.laptop.services import plain_environment
from include.laptop.serving import keeper, router_url, supervised_services, token, traffic
from include.platforms import load_platform
from include.recipes import resolve

START_TIMEOUT = 120.0
"""Seconds until every serving service answers: 4 on two quiet cores, far more on a loaded machine."""

HEALTH_TIMEOUT = 3.0


def start(say: Callable[[str], object], rate: float | None = None) -> None:
    """Start what does not run yet, and wait until all of it is healthy.

    Args:
        say: takes a line for the user.
        rate: requests a second of traffic from now on, 0 for none; None leaves that as it is.

    Raises:
        TryAgainError: something died or did not become healthy; the message holds the end of its log.
        ConfigurationError: it runs already, on another port.
    """
    start_serving()
    # Airflow takes longer: by then the serving side has come up beside it.
    laptop.start(say)
    wait_for_serving()
    start_keeper()
    say(f"Serving is up: {router_url()}")
    if rate is not None:
        stop_traffic()
        if rate > 0:
            start_traffic(rate)
            say(f"Traffic goes to it: {rate:g} requests a second; figures in {traffic_counts()}")


def start_serving() -> None:
    """Start the services that do not run; does not wait for them to answer."""
    make_home()
    with exclusive():
        claim_port()
        token()
        settings = environment()
        for supervised in supervised_services():
            if not supervised.service.running():
                supervised.service.stop(grace=0)
                supervised.service.start(supervised.command, settings)


def start_keeper() -> None:
    """Start the keeper if it does not run. Call it last: it does not repair what never started."""
    with exclusive():
        if not keeper().running():
            keeper().start([sys.executable, "-m", "include.laptop.keeper"], environment())


def wait_for_serving() -> None:
    """Wait until every service answers.

    Raises:
        TryAgainError: one does not; the message holds the end of its log.
    """
    deadline = time.monotonic() + START_TIMEOUT
    for supervised in supervised_services():
        service = supervised.service
        while not supervised.answers(HEALTH_TIMEOUT):
            ended = not service.running() and not keeper().running()
            if ended or time.monotonic() > deadline:
                trouble = "ended on its own" if ended else f"does not answer after {START_TIMEOUT:.0f} s"
                raise TryAgainError(
                    f"{service.last_lines(15)}\nThe service {service.name} {trouble}; its log is {service.log}: see "
                    "the lines above"
                )
            time.sleep(0.1)


def start_traffic(rate: float) -> None:
    """Start the traffic generator with `rate` requests a second at the model of the arrivals' recipe."""
    settings = environment()
    model = resolve(load_platform("laptop").arrivals.recipe).model
    command = [str(python_of("serving")), "-m", "jobs.serving.traffic", "--url", router_url(), "--model", model]
    traffic_counts().unlink(missing_ok=True)
    with exclusive():
        traffic().start([*command, "--rate", f"{rate:g}", "--out", str(traffic_counts())], settings)


def stop_traffic() -> bool:
    """End the traffic generator; return whether it ran."""
    with exclusive():
        return traffic().stop(grace=15.0)


def traffic_counts() -> Path:
    """Return the file of the traffic generator's counts (see `jobs.serving.traffic.counts`)."""
    return run_folder() / "traffic-counts.json"


def environment() -> dict[str, str]:
    """Return the environment of every serving service: a job's, one thread, and nothing of Airflow's."""
    own = {
        "OMP_NUM_THREADS": "1",
        "ANEMONE_HOME": str(home()),
        "ANEMONE_PORT": str(port()),
        "ANEMONE_PLATFORM": "laptop",
    }
    return {**plain_environment(), **load_platform("laptop").environment, **own, "PYTHONUNBUFFERED": "1"}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m include.laptop.up", description=__doc__)
    parser.add_argument("--traffic", type=float, metavar="RATE", help="requests a second; 0 ends it")
    start(print, parser.parse_args(arguments).traffic)


if __name__ == "__main__":
    try:
        main()
    except (AnemoneError, NotOursError, ValueError) as error:
        sys.exit(f"error: {error}")
