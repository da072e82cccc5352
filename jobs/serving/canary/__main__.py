"""`python -m jobs.serving.canary`: the canary controller, and a person's commands to it."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from include.artifacts.store import Store
from include.errors import AnemoneError, ConfigurationError, ExitCode
from include.release.controller_client import ControllerClient
from jobs.common.command_line import LOCAL, Parser, listen, port, read_token
from jobs.serving.canary.analysis.runs import has_runs, read, replay
from jobs.serving.log import log

if TYPE_CHECKING:
    from include.model import Model
    from jobs.serving.canary.servers.interface import Servers
    from jobs.serving.canary.traffic.interface import TrafficRouter

_GATEWAY = ("gateway_route", "gateway_rule", "gateway_target", "gateway_services", "canary_router")


def main() -> None:
    parser = Parser(prog="python -m jobs.serving.canary", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    serve = commands.add_parser("serve", help="run the controller until SIGTERM")
    serve.add_argument("--router", required=True, metavar="URL", help="the router's admin API")
    triton = serve.add_mutually_exclusive_group(required=True)
    triton.add_argument("--triton", metavar="HOST:PORT", help="gRPC endpoint of the one Triton, on this machine")
    triton.add_argument("--stable", nargs="+", metavar="HOST:PORT", help="the agents of the champion's Tritons")
    serve.add_argument("--canary", nargs="+", metavar="HOST:PORT", help="of the canary's; goes with --stable")
    serve.add_argument("--store", required=True, metavar="URI", help="the store that evidence is committed to")
    gateway = serve.add_argument_group("where an HTTPRoute leads the traffic (Gateway API)")
    gateway.add_argument("--gateway-route", metavar="[NAMESPACE/]NAME", help="the HTTPRoute")
    gateway.add_argument("--gateway-rule", metavar="NAME", help="the rule with the weights; only these are changed")
    gateway.add_argument("--gateway-target", metavar="NAME", help="the model whose traffic it is")
    gateway.add_argument("--gateway-services", nargs=2, metavar="NAME", help="its backends: stable's, canary's")
    gateway.add_argument("--canary-router", metavar="URL", help="admin API of the router behind the canary's backend")
    serve.add_argument("--host", default=LOCAL, help="address to listen on; default %(default)s")
    serve.set_defaults(run=_serve)
    status = commands.add_parser("status", help="show a rollout, or a target and what it serves")
    status.add_argument("what", help="a rollout's id, or target:NAME")
    status.set_defaults(run=_status)
    abort = commands.add_parser("abort", help="roll a rollout back")
    abort.add_argument("id")
    abort.add_argument("--reason", default="a person said so")
    abort.set_defaults(run=_abort)
    resume = commands.add_parser("resume", help="let a held rollout go on")
    resume.add_argument("id")
    resume.set_defaults(run=_resume)
    for command in (serve, status, abort, resume):
        command.add_argument("--folder", type=Path, required=True, help="of the serving side: token and records")
        command.add_argument("--token-file", type=Path, help="default: token in the folder")
        command.add_argument("--port", type=port, required=True, help="of the controller")
    again = commands.add_parser("replay", help="decide every analysis run of a rollout again, and compare")
    again.add_argument("evidence", help="the URI of a rollout's evidence, or its file looks.jsonl")
    again.set_defaults(run=_replay)
    arguments = parser.parse_args()
    if arguments.command == "serve" and bool(arguments.stable) != bool(arguments.canary):
        parser.error("--stable and --canary go together: give both, or --triton alone")
    if arguments.command == "serve" and len({bool(getattr(arguments, name)) for name in _GATEWAY}) > 1:
        parser.error(f"{', '.join(f'--{name}'.replace('_', '-') for name in _GATEWAY)} go together: give all, or none")
    try:
        sys.exit(arguments.run(arguments))
    except AnemoneError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


def _serve(arguments: argparse.Namespace) -> int:
    token = read_token(_token_file(arguments))
    store = Store(arguments.store).root
    asyncio.run(_run_service(arguments, token, store))
    return ExitCode.OK


async def _run_service(arguments: argparse.Namespace, token: str, store: str) -> None:
    from aiohttp import web

    from jobs.serving.canary.api import make_app
    from jobs.serving.canary.controller import Controller
    from jobs.serving.canary.data_plane import DataPlane
    from jobs.serving.canary.state.records import Records

    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    records = Records(arguments.folder / "canary")
    records.lock()
    listener = listen(arguments.host, arguments.port)
    boot = uuid.uuid4().hex[:12]
    async with _traffic(arguments, token, boot) as traffic, _tiers(arguments, token) as (stable, canary):
        data_plane = DataPlane(traffic, stable, canary, store, boot)
        controller = Controller(records, data_plane)
        runner = web.AppRunner(make_app(controller, token), access_log=None, shutdown_timeout=1.0)
        await runner.setup()
        try:
            # Who asks meanwhile waits: answered before the records are read, no rollout would be known.
            await controller.start()
            await web.SockSite(runner, listener).start()
            log("serving", url=f"http://{arguments.host}:{arguments.port}")
            await stop.wait()
        finally:
            await runner.cleanup()
            await controller.close()
        log("stopped")


@asynccontextmanager
async def _traffic(arguments: argparse.Namespace, token: str, boot: str) -> AsyncIterator[TrafficRouter]:
    """Yield the traffic router: the router, or a gateway with two of them."""
    from jobs.serving.canary.traffic.gateway import Gateway
    from jobs.serving.canary.traffic.http_route import HTTPRoute, KubernetesConfig
    from jobs.serving.canary.traffic.router import Router

    async with Router(arguments.router, token) as router:
        if arguments.gateway_route is None:
            yield router
            return
        rule, services = arguments.gateway_rule, arguments.gateway_services
        async with (
            Router(arguments.canary_router, token) as canary,
            HTTPRoute(KubernetesConfig.in_cluster(), arguments.gateway_route, rule, *services) as route,
        ):
            yield Gateway(router, canary, route, arguments.gateway_target, boot)


@asynccontextmanager
async def _tiers(arguments: argparse.Namespace, token: str) -> AsyncIterator[tuple[Servers, Servers]]:
    """Yield the servers of the champion and those of the canary; on one machine they are the same."""
    from jobs.serving.canary.servers.local import LocalTriton
    from jobs.serving.canary.servers.pods import Pods
    from jobs.serving.triton.agent_client import AgentResolver
    from jobs.serving.triton.client import TritonClient

    if arguments.triton:
        async with TritonClient(arguments.triton) as triton:
            local = LocalTriton(arguments.folder, triton)
            yield local, local
        return
    async with AgentResolver(arguments.stable, token) as stable, AgentResolver(arguments.canary, token) as canary:
        yield Pods("the stable tier", stable), Pods("the canary tier", canary)


def _status(arguments: argparse.Namespace) -> int:
    client, what = _client(arguments), arguments.what
    if what.startswith("target:"):
        target = what.removeprefix("target:")
        return _show(client.target(target), f"there is no target {target}")
    return _show(client.status(what), f"there is no rollout {what}")


def _abort(arguments: argparse.Namespace) -> int:
    client = _client(arguments)
    refusal = client.abort(arguments.id, arguments.reason)
    if refusal is not None:
        raise ConfigurationError(refusal)
    return _show(client.status(arguments.id), f"there is no rollout {arguments.id}")


def _resume(arguments: argparse.Namespace) -> int:
    return _show(_client(arguments).resume(arguments.id))


def _client(arguments: argparse.Namespace) -> ControllerClient:
    token_file = _token_file(arguments)
    # A task waits for a token that is missing; a person who types a command named the wrong folder.
    read_token(token_file)
    return ControllerClient(f"http://{LOCAL}:{arguments.port}", token_file)


def _show(answer: Model | None, missing: str = "") -> int:
    """Print an answer of the controller; raise ConfigurationError with `missing` where it is None."""
    if answer is None:
        raise ConfigurationError(missing)
    print(answer.model_dump_json(indent=1))
    return ExitCode.OK


def _replay(arguments: argparse.Namespace) -> int:
    """Print every analysis run; end with 70 at the first that is decided otherwise than it was recorded."""
    where = arguments.evidence
    if "://" in where:
        store, name = Store.of(where)
        data = store.read_bytes(name, "looks.jsonl")
    else:
        try:
            data = Path(where).read_bytes()
        except OSError as error:
            raise ConfigurationError(f"{where} cannot be read ({error.strerror}): name a looks.jsonl") from None
    if not has_runs(data):
        print(f"{where}: no analysis runs, the rollout was decided before its first step")
        return ExitCode.OK
    heading, runs = read(data, where)
    for replayed in replay(heading, runs):
        run = replayed.run
        print(
            f"analysis run {replayed.number}  step {run.evidence.step + 1}  {run.evidence.elapsed:.1f} s  {run.action}"
            + "".join(f"  {reason}" for reason in run.reasons)
        )
        if replayed.difference is not None:
            message = f"{where}: analysis run {replayed.number} is decided otherwise now: {replayed.difference}"
            print(f"error: {message}", file=sys.stderr)
            return ExitCode.FAULT
    print(f"{len(runs)} analysis runs of {heading.rollout}: every decision the same")
    return ExitCode.OK


def _token_file(arguments: argparse.Namespace) -> Path:
    return arguments.token_file or arguments.folder / "token"


if __name__ == "__main__":
    main()
