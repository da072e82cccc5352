"""`python -m jobs.serving.triton`: prepare, then become the tritonserver inside nvidia-pytriton."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from include.errors import AnemoneError
from jobs.common.command_line import LOCAL, Parser, port
from jobs.serving.triton.server import EXIT_SECONDS, Ports, prepare


def main() -> None:
    parser = Parser(prog="python -m jobs.serving.triton", description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="the serving side's folder")
    for name in Ports._fields:
        parser.add_argument(f"--{name}-port", type=port, required=True, help="gRPC's is on 127.0.0.1")
    parser.add_argument("--host", default=LOCAL, help="address of HTTP and the metrics; default %(default)s")
    parser.add_argument("--exit-seconds", type=int, default=EXIT_SECONDS, help="for requests in flight at the end")
    chosen = parser.parse_args()
    try:
        ports = Ports(chosen.http_port, chosen.grpc_port, chosen.metrics_port)
        command = prepare(chosen.folder.absolute(), ports, host=chosen.host, exit_seconds=chosen.exit_seconds)
    except AnemoneError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    sys.stdout.flush()
    os.execve(command.arguments[0], command.arguments, command.environment)


if __name__ == "__main__":
    main()
