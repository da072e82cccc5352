"""`python -m jobs.serving.router`: the one endpoint of the served models."""

from __future__ import annotations

import argparse
import sys
from dataclasses import fields
from pathlib import Path
from typing import TypeVar

import uvloop

from include.errors import AnemoneError
from jobs.common.command_line import LOCAL, Parser, port
from jobs.serving.router.limits import Limits, Timeouts
from jobs.serving.router.service import Options, serve

L = TypeVar("L", Limits, Timeouts)


def main() -> None:
    parser = Parser(prog="python -m jobs.serving.router", description="Routes requests to the live releases.")
    parser.add_argument("--folder", type=Path, required=True, help="of the serving side: token and routes")
    parser.add_argument("--port", type=port, required=True, help="for clients")
    parser.add_argument("--admin-port", type=port, required=True, help="for the canary controller and Prometheus")
    parser.add_argument("--triton", required=True, metavar="URL", help="Triton's HTTP endpoint")
    parser.add_argument("--canary-triton", metavar="URL", help="of the canary's own Triton; by default it has none")
    parser.add_argument("--fresh-connections", action="store_true", help="to Triton: a new one for each request")
    parser.add_argument("--host", default=LOCAL, help="address that both ports are on; default %(default)s")
    parser.add_argument("--token-file", type=Path, help="default: token in the folder")
    parser.add_argument("--drain-seconds", type=_positive, default=30.0, help="for requests in flight at the end")
    for group in (Limits, Timeouts):
        for option in fields(group):
            parser.add_argument(
                _flag(group, option.name),
                type=_positive if isinstance(option.default, float) else _positive_whole,
                default=option.default,
                help=f"default {option.default}",
            )
    arguments = parser.parse_args()
    try:
        uvloop.run(
            serve(
                Options(
                    folder=arguments.folder,
                    port=arguments.port,
                    admin_port=arguments.admin_port,
                    triton=arguments.triton,
                    canary_triton=arguments.canary_triton,
                    fresh_connections=arguments.fresh_connections,
                    host=arguments.host,
                    token_file=arguments.token_file,
                    limits=_group(Limits, arguments),
                    timeouts=_group(Timeouts, arguments),
                    drain_seconds=arguments.drain_seconds,
                )
            )
        )
    except AnemoneError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


def _flag(group: type[Limits] | type[Timeouts], name: str) -> str:
    return f"--max-{name}".replace("_", "-") if group is Limits else f"--{name}-seconds".replace("_", "-")


def _group(group: type[L], arguments: argparse.Namespace) -> L:
    return group(
        **{option.name: getattr(arguments, _flag(group, option.name)[2:].replace("-", "_")) for option in fields(group)}
    )


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return value


def _positive_whole(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive whole number")
    return value


if __name__ == "__main__":
    main()
