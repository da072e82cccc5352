"""The router as a service: both APIs on their ports until SIGTERM, then the requests in flight for a while."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
from dataclasses import dataclass, field
from pathlib import Path

from aiohttp import web

from include.errors import ConfigurationError
from jobs.common.command_line import LOCAL, read_token
from jobs.serving.log import log
from jobs.serving.router.admin import AdminApi
from jobs.serving.router.dispatch import Dispatcher
from jobs.serving.router.limits import Limits, Timeouts
from jobs.serving.router.listener import BACKLOG, LimitedSite, allow_connections
from jobs.serving.router.metrics import make_registry
from jobs.serving.router.public import PublicApi
from jobs.serving.router.routes import RouteFile, lock_folder
from jobs.serving.router.targets import Targets
from jobs.serving.router.upstream import Upstream


@dataclass(frozen=True)
class Options:
    """Options of the service.

    Attributes:
        folder: of the serving side; holds the routes.
        triton: URL of Triton's HTTP endpoint. `canary_triton`: of the canary's, where it has one of its own.
        fresh_connections: a new one to Triton for each request.
        host: address that both APIs listen on.
        token_file: holds the token of the admin API; None: `token` in the folder.
        drain_seconds: for the requests in flight, once asked to stop; what has not ended by then is broken off.
    """

    folder: Path
    port: int
    admin_port: int
    triton: str
    canary_triton: str | None = None
    fresh_connections: bool = False
    host: str = LOCAL
    token_file: Path | None = None
    limits: Limits = field(default_factory=Limits)
    timeouts: Timeouts = field(default_factory=Timeouts)
    drain_seconds: float = 30.0


async def serve(options: Options) -> None:
    """Run until SIGTERM or SIGINT.

    Raises:
        ConfigurationError: no token, a port that is taken, or another router on this folder.
        DataError: the routes cannot be read.
    """
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    token = read_token(options.token_file or options.folder / "token")
    lock = lock_folder(options.folder)
    file = RouteFile(options.folder)
    routes, source = file.read()
    if source == file.previous:
        log("routes_damaged", file=file.path, used=file.previous, hint="the last change may be missing")
    targets = Targets(file, routes)
    upstream = Upstream(options.triton, options.timeouts, fresh=options.fresh_connections)
    canary = upstream
    if options.canary_triton is not None:
        canary = Upstream(options.canary_triton, options.timeouts, fresh=options.fresh_connections)
    dispatcher = Dispatcher({"champion": upstream, "canary": canary}, options.limits)
    public = web.AppRunner(
        PublicApi(targets, dispatcher, upstream, options.limits, options.timeouts).application(),
        access_log=None,
        # A client that goes away ends its generation.
        handler_cancellation=True,
        keepalive_timeout=options.timeouts.idle,
        shutdown_timeout=options.drain_seconds,
    )
    admin = web.AppRunner(
        AdminApi(targets, make_registry(targets, dispatcher), token).application(), access_log=None, shutdown_timeout=5
    )
    connections = allow_connections(options.limits)
    try:
        await admin.setup()
        await _listen(
            web.TCPSite(admin, options.host, options.admin_port, backlog=BACKLOG), options.host, options.admin_port
        )
        await public.setup()
        site = LimitedSite(public, options.host, options.port, limit=connections, refuse=dispatcher.turn_away)
        await _listen(site, options.host, options.port)
        log(
            "started",
            host=options.host,
            port=options.port,
            admin_port=options.admin_port,
            triton=options.triton,
            targets=len(routes),
            connections=connections,
        )
        await stop.wait()
        log("stopping", in_flight=dispatcher.in_flight)
    finally:
        await public.cleanup()
        await admin.cleanup()
        await upstream.close()
        await canary.close()
        os.close(lock)
    log("stopped")


async def _listen(site: web.BaseSite, host: str, port: int) -> None:
    try:
        await site.start()
    except OSError as error:
        if error.errno not in (errno.EADDRINUSE, errno.EACCES):
            raise
        raise ConfigurationError(
            f"port {port} on {host} cannot be used ({error.strerror}): end the process that listens "
            "there, or choose another port"
        ) from None
