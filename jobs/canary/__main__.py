"""`python -m jobs.canary`: the canary controller, and what a person asks of it."""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import socket
import sys
import urllib.error
import urllib.request
import uuid
from pathlib import Path
from typing import Any
from urllib.parse import quote

from include.artifacts.store import Store
from include.errors import AnemoneError, ConfigurationError, DataError, ExitCode
from jobs.canary.looks import has_looks, read, replay
from jobs.command_line import Parser, port
from jobs.router.log import log

_HOST = "127.0.0.1"
_TIMEOUT_SECONDS = 90.0


def main() -> None:
    parser = Parser(prog="python -m jobs.canary", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    serve = commands.add_parser("serve", help="run the controller until SIGTERM")
    serve.add_argument("--router", required=True, metavar="URL", help="the router's admin API")
    serve.add_argument("--triton", required=True, metavar="HOST:PORT", help="Triton's gRPC endpoint")
    serve.add_argument("--store", required=True, metavar="URI", help="the store that evidence is committed to")
    serve.set_defaults(run=_serve)
    status = commands.add_parser("status", help="how a rollout stands, or what a target serves")
    status.add_argument("what", help="a rollout's id, or target:NAME")
    status.set_defaults(run=_status)
    abort = commands.add_parser("abort", help="have a rollout go back")
    abort.add_argument("id")
    abort.add_argument("--reason", default="a person said so")
    abort.set_defaults(run=_abort)
    resume = commands.add_parser("resume", help="let a held rollout go on")
    resume.add_argument("id")
    resume.set_defaults(run=_resume)
    for command in (serve, status, abort, resume):
        command.add_argument("--folder", type=Path, required=True, help="of the serving side: token and records")
        command.add_argument("--port", type=port, required=True, help="of the controller")
    again = commands.add_parser("replay", help="decide every look of a rollout again, and compare")
    again.add_argument("looks", help="a file looks.jsonl, or the URI of a rollout's evidence")
    again.set_defaults(run=_replay)
    arguments = parser.parse_args()
    try:
        sys.exit(arguments.run(arguments))
    except AnemoneError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


def _serve(arguments: argparse.Namespace) -> int:
    token = _token(arguments.folder)
    store = Store(arguments.store).root
    asyncio.run(_run_service(arguments, token, store))
    return ExitCode.OK


async def _run_service(arguments: argparse.Namespace, token: str, store: str) -> None:
    from aiohttp import web

    from jobs.canary.api import make_app
    from jobs.canary.controller import Controller
    from jobs.canary.peers import Peers
    from jobs.canary.records import Records
    from jobs.canary.router import Router
    from jobs.triton.client import TritonClient

    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    records = Records(arguments.folder / "canary")
    records.lock()
    listener = _listen(arguments.port)
    async with Router(arguments.router, token) as router, TritonClient(arguments.triton) as triton:
        peers = Peers(arguments.folder, router, triton, store, boot=uuid.uuid4().hex[:12])
        controller = Controller(records, peers)
        runner = web.AppRunner(make_app(controller, token), access_log=None, shutdown_timeout=1.0)
        await runner.setup()
        try:
            await web.SockSite(runner, listener).start()
            await controller.start()
            log("serving", url=f"http://{_HOST}:{arguments.port}")
            await stop.wait()
        finally:
            await runner.cleanup()
            await controller.close()
        log("stopped")


def _listen(port: int) -> socket.socket:
    """Before anything else is begun: where another listens, nothing has to be undone."""
    try:
        return socket.create_server((_HOST, port))
    except OSError as error:
        raise ConfigurationError(
            f"port {port} on {_HOST} cannot be had ({error.strerror}): end the process that listens "
            "there, or choose another port"
        ) from None


def _status(arguments: argparse.Namespace) -> int:
    kind, _, name = arguments.what.rpartition(":") if arguments.what.startswith("target:") else ("", "", arguments.what)
    return _show(arguments, "GET", f"/{'targets' if kind else 'rollouts'}/{quote(name)}")


def _abort(arguments: argparse.Namespace) -> int:
    return _show(arguments, "POST", f"/rollouts/{quote(arguments.id)}/abort", {"reason": arguments.reason})


def _resume(arguments: argparse.Namespace) -> int:
    return _show(arguments, "POST", f"/rollouts/{quote(arguments.id)}/resume")


def _show(arguments: argparse.Namespace, method: str, path: str, body: dict[str, Any] | None = None) -> int:
    request = urllib.request.Request(
        f"http://{_HOST}:{arguments.port}{path}",
        method=method,
        data=None if body is None else json.dumps(body).encode(),
        headers={"Authorization": f"Bearer {_token(arguments.folder)}"},
    )
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS) as response:
            print(json.dumps(json.load(response), indent=1, ensure_ascii=False))
    except urllib.error.HTTPError as error:
        document = json.loads(error.read() or b"{}")
        raise ConfigurationError(document.get("error", f"the controller answered {error.code}")) from None
    except OSError as error:
        raise ConfigurationError(
            f"the controller on port {arguments.port} does not answer ({error}): see that it runs"
        ) from None
    return ExitCode.OK


def _replay(arguments: argparse.Namespace) -> int:
    """70 at the first look that is decided otherwise than it was recorded."""
    where = arguments.looks
    if "://" in where:
        store, name = Store.of(where)
        data = store.read_bytes(name, "looks.jsonl")
    else:
        try:
            data = Path(where).read_bytes()
        except OSError as error:
            raise ConfigurationError(f"{where} cannot be read ({error.strerror}): name a looks.jsonl") from None
    if not has_looks(data):
        print(f"{where}: no looks, the rollout was decided before its first step")
        return ExitCode.OK
    heading, looks = read(data, where)
    for again in replay(heading, looks):
        look = again.look
        print(
            f"look {again.number}  step {look.evidence.step + 1}  {look.evidence.elapsed:.1f} s  {look.action}"
            + "".join(f"  {reason}" for reason in look.reasons)
        )
        if again.difference is not None:
            print(f"error: {where}: look {again.number} is decided otherwise now: {again.difference}", file=sys.stderr)
            return ExitCode.FAULT
    print(f"{len(looks)} looks of {heading.rollout}: every decision the same")
    return ExitCode.OK


def _token(folder: Path) -> str:
    try:
        token = (folder / "token").read_text(encoding="utf-8").strip()
    except OSError as error:
        raise ConfigurationError(
            f"{folder}/token cannot be read ({error.strerror}): whoever starts the services writes it"
        ) from None
    except UnicodeDecodeError:
        raise DataError(f"{folder}/token is no text: remove it, and start the services again") from None
    if not token:
        raise ConfigurationError(f"{folder}/token is empty: remove it, and start the services again")
    return token


if __name__ == "__main__":
    main()
