"""`python -m jobs.serving.traffic --url URL --model MODEL --rate R`: clients of the demo's model, until SIGTERM."""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from urllib.parse import urlsplit

import uvloop

from include.errors import AnemoneError, ConfigurationError, ExitCode
from jobs.common.command_line import Parser
from jobs.serving.traffic.generator import generate


def main(arguments: list[str] | None = None) -> int:
    """Send traffic; return the exit code, 0 where it ended as asked, whatever the answers were."""
    parser = Parser(prog="python -m jobs.serving.traffic", description=__doc__)
    parser.add_argument("--url", required=True, help="the router's, as http://127.0.0.1:8090")
    parser.add_argument("--model", required=True, help="the public model name")
    parser.add_argument("--rate", type=float, required=True, help="requests a second, on average")
    parser.add_argument("--seconds", type=float, help="how long; until SIGTERM when left out")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, metavar="FILE", help="JSON file with the counts, written each second")
    given = parser.parse_args(arguments)
    try:
        _check(given)
        url = given.url.rstrip("/")
        load = generate(url, given.model, rate=given.rate, seconds=given.seconds, seed=given.seed, out=given.out)
        uvloop.run(load)
    except AnemoneError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return ExitCode.OK


def _check(given: argparse.Namespace) -> None:
    if urlsplit(given.url).scheme not in ("http", "https") or not urlsplit(given.url).netloc:
        raise ConfigurationError(f"--url is {given.url!r}: give the router's address, as http://127.0.0.1:8090")
    for name in ("rate", "seconds"):
        value = getattr(given, name)
        if value is not None and not (value > 0 and math.isfinite(value)):
            raise ConfigurationError(f"--{name} is {value:g}: give a number above 0")
    if given.out is not None and not given.out.absolute().parent.is_dir():
        raise ConfigurationError(f"--out is {given.out}, whose folder does not exist: make it")


if __name__ == "__main__":
    sys.exit(main())
