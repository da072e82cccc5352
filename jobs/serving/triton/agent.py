"""`python -m jobs.serving.triton.agent`: manages the Triton beside it in a pod for the canary controller.

Triton's own API for that, gRPC, stays on 127.0.0.1; here everything but /health and /ready needs the token. The pod is
ready, and gets requests, only while all releases are loaded that the controller says it serves, so that a new pod takes
none. After SIGTERM the agent stays until its Triton has ended, and reports that the pod is terminating.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

from aiohttp import web
from pydantic import Field, ValidationError

from include.durable import fsync
from include.errors import AnemoneError, first_problem
from include.model import Model
from include.release.rollouts import Drill, Release
from jobs.common.command_line import Parser, listen, port, read_token
from jobs.serving.authorization import is_authorized
from jobs.serving.log import log, log_trace
from jobs.serving.router.routes import ReleaseName
from jobs.serving.triton import repository
from jobs.serving.triton.agent_client import LOAD_SECONDS
from jobs.serving.triton.client import READY, TritonClient

M = TypeVar("M", bound=Model)

SERVES = "serves.json"
_OPEN = ("/health", "/ready")
_GOLDEN = "golden.jsonl"
_MAX_BODY = 4 * 1024 * 1024
_POLL_SECONDS = 0.5


class _Install(Model):
    release: Release
    drill: Drill = "none"


class _Generate(Model):
    text: str | None = None
    messages: tuple[dict[str, Any], ...] | None = None
    max_tokens: int | None = None
    timeout: Annotated[float, Field(gt=0, le=600)] = 30.0


class _Serves(Model):
    names: tuple[ReleaseName, ...]


class AgentApi:
    """The handlers of the agent's API.

    Attributes:
        leaving: whether the pod is terminating.
    """

    def __init__(self, folder: Path, triton: TritonClient, token: str) -> None:
        self.leaving = False
        self._folder = folder
        self._triton = triton
        self._token = token
        self._changing = asyncio.Lock()
        self._setting = asyncio.Lock()

    def application(self) -> web.Application:
        application = web.Application(middlewares=[self._guard], client_max_size=_MAX_BODY)
        release = r"/releases/{name:[A-Za-z0-9][A-Za-z0-9_.-]{0,159}}"
        application.add_routes(
            [
                web.get("/health", self._health),
                web.get("/ready", self._ready),
                web.get("/state", self._state),
                web.put("/serves", self._serve),
                web.put(release, self._install),
                web.delete(release, self._remove),
                web.post(f"{release}/load", self._load),
                web.post(f"{release}/reload", self._reload),
                web.post(f"{release}/unload", self._unload),
                web.post(f"{release}/generate", self._generate),
                web.get(r"/engines/{engine:[0-9a-f]{16}}/golden", self._golden),
            ]
        )
        return application

    async def _health(self, request: web.Request) -> web.Response:
        return web.json_response({"live": True})

    async def _ready(self, request: web.Request) -> web.Response:
        """Answer the kubelet's readiness probe."""
        if self.leaving:
            return _error(503, "this pod is terminating")
        serves = _read_serves(self._folder)
        if serves is None:
            return _error(503, "the canary controller has not said yet what this pod serves: see that it runs")
        states = await self._triton.states()
        if lacking := sorted(name for name in serves if states.get(name) != READY):
            return _error(503, f"not loaded yet: {', '.join(lacking)}")
        return web.json_response({"serves": serves})

    async def _state(self, request: web.Request) -> web.Response:
        live = await self._triton.live()
        states = await self._triton.states() if live else {}
        return web.json_response(
            {
                "live": live,
                "leaving": self.leaving,
                "ready": sorted(name for name, state in states.items() if state == READY),
                "installed": _names(self._folder / repository.MODELS),
                "engines": _names(self._folder / repository.ENGINES),
            }
        )

    async def _serve(self, request: web.Request) -> web.Response:
        names = list((await _read(request, _Serves)).names)
        async with self._setting:
            if names != _read_serves(self._folder):
                await asyncio.to_thread(_write_serves, self._folder, names)
                log("serves", names=",".join(names) or "nothing")
        return web.json_response({})

    async def _install(self, request: web.Request) -> web.Response:
        asked, name = await _read(request, _Install), request.match_info["name"]
        async with self._changing:
            await asyncio.to_thread(repository.install, self._folder, asked.release, asked.drill, name=name)
        return web.json_response({})

    async def _remove(self, request: web.Request) -> web.Response:
        async with self._changing:
            await asyncio.to_thread(repository.remove, self._folder, request.match_info["name"])
        return web.json_response({})

    async def _load(self, request: web.Request) -> web.Response:
        await self._triton.load(request.match_info["name"], timeout=LOAD_SECONDS)
        return web.json_response({})

    async def _reload(self, request: web.Request) -> web.Response:
        await self._triton.reload(request.match_info["name"], timeout=LOAD_SECONDS)
        return web.json_response({})

    async def _unload(self, request: web.Request) -> web.Response:
        await self._triton.unload(request.match_info["name"])
        return web.json_response({})

    async def _generate(self, request: web.Request) -> web.Response:
        asked = await _read(request, _Generate)
        answer = await self._triton.generate(
            request.match_info["name"],
            text=asked.text,
            messages=asked.messages,
            max_tokens=asked.max_tokens,
            timeout=asked.timeout,
        )
        return web.json_response(answer._asdict())

    async def _golden(self, request: web.Request) -> web.Response:
        path = self._folder / repository.ENGINES / request.match_info["engine"] / _GOLDEN
        try:
            text = await asyncio.to_thread(path.read_text, encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            return _error(
                404,
                f"{path} does not hold golden prompts ({error}): run release with refresh: [engine]",
                "DataError",
            )
        return web.json_response({"text": text})

    @web.middleware
    async def _guard(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        if request.path not in _OPEN and not is_authorized(request, self._token):
            return _error(401, "the bearer token is missing or wrong: controller and agent read the same Secret")
        try:
            return await handler(request)
        except ValidationError as error:
            return _error(422, first_problem(error, "request"))
        except (AnemoneError, OSError) as error:
            return _error(503, str(error), type(error).__name__)
        except web.HTTPException as error:
            return _error(error.status, error.reason)
        except Exception as error:
            log_trace()
            return _error(500, f"{type(error).__name__}: {error}")


async def _read(request: web.Request, model: type[M]) -> M:
    return model.model_validate_json(await request.read())


def _error(status: int, message: str, kind: str | None = None) -> web.Response:
    return web.json_response({"error": message, "kind": kind}, status=status)


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def _read_serves(folder: Path) -> list[str] | None:
    """Return the names that the controller set last, also before the agent's container restarted; None in a new pod."""
    try:
        return json.loads((folder / SERVES).read_text())
    except (FileNotFoundError, ValueError):
        return None


def _write_serves(folder: Path, names: list[str]) -> None:
    new = folder / f"{SERVES}.new"
    new.write_text(json.dumps(names))
    fsync(new)
    new.replace(folder / SERVES)


async def serve(folder: Path, host: str, number: int, triton: str, token: str, leave_seconds: float) -> None:
    """Run until SIGTERM, and from then on until Triton has ended, at most `leave_seconds`.

    Raises:
        ConfigurationError: the port cannot be used.
    """
    stop = asyncio.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signum, stop.set)
    folder.mkdir(parents=True, exist_ok=True)
    listener = listen(host, number)
    async with TritonClient(triton) as client:
        api = AgentApi(folder, client, token)
        runner = web.AppRunner(api.application(), access_log=None, shutdown_timeout=1.0)
        await runner.setup()
        try:
            await web.SockSite(runner, listener).start()
            log("serving", host=host, port=number, triton=triton)
            await stop.wait()
            api.leaving = True
            log("leaving", at_most_seconds=leave_seconds)
            loop = asyncio.get_running_loop()
            until = loop.time() + leave_seconds
            while loop.time() < until and await client.live():
                await asyncio.sleep(_POLL_SECONDS)
        finally:
            await runner.cleanup()
    log("stopped")


def main() -> None:
    parser = Parser(prog="python -m jobs.serving.triton.agent", description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="Triton's, shared with it")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; default %(default)s")
    parser.add_argument("--port", type=port, required=True)
    parser.add_argument("--triton", required=True, metavar="HOST:PORT", help="Triton's gRPC endpoint")
    parser.add_argument("--token-file", type=Path, required=True, help="holds the bearer token")
    parser.add_argument("--leave-seconds", type=float, default=30.0, help="at most, after SIGTERM, while Triton drains")
    chosen = parser.parse_args()
    try:
        token = read_token(chosen.token_file)
        asyncio.run(
            serve(chosen.folder.absolute(), chosen.host, chosen.port, chosen.triton, token, chosen.leave_seconds)
        )
    except AnemoneError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
