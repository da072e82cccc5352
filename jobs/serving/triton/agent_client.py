"""A client of the agents beside a cluster's Tritons, for the canary controller (see `jobs.serving.triton.agent`)."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

import aiohttp
from pydantic import ValidationError

from include.errors import AnemoneError, ArtifactError, ConfigurationError, DataError, TryAgainError, first_problem
from include.model import Model
from include.release.rollouts import Drill, Release
from jobs.serving.triton.client import Answer, BadInputError, NotAvailableError, TimedOutError, TritonError

_CALL_SECONDS = 10.0
LOAD_SECONDS = 600.0
"""An engine of tens of gigabytes is copied from the disk to the accelerators."""

_UNLOAD_SECONDS = 180.0
_INSTALL_SECONDS = 3600.0
"""An engine of tens of gigabytes is read from the store and verified."""

_KEEPALIVE = ((socket.TCP_KEEPIDLE, 15), (socket.TCP_KEEPINTVL, 5), (socket.TCP_KEEPCNT, 6))
"""Seconds of silence before the first probe, seconds between probes, and how many may go unanswered."""

ERROR_TYPES: dict[str, type[AnemoneError]] = {
    kind.__name__: kind
    for kind in (
        *(ArtifactError, ConfigurationError, DataError, TryAgainError),
        *(BadInputError, NotAvailableError, TimedOutError),
    )
}
"""Of an agent's errors; any other is a TritonError."""


class AgentState(Model):
    """State of a pod.

    Attributes:
        live: whether its Triton answers.
        leaving: whether it is terminating.
        ready: releases that are loaded.
        installed: releases in the repository. `engines`: first 16 digits of the engines' digests.
    """

    live: bool
    leaving: bool
    ready: frozenset[str]
    installed: frozenset[str]
    engines: frozenset[str]


class Agent:
    """One agent. Every call raises NotAvailableError where it does not answer, or its Triton does not."""

    def __init__(self, url: str, session: aiohttp.ClientSession) -> None:
        self.url = url
        self._session = session

    async def state(self) -> AgentState:
        """Return what the server has installed and loaded. Raises TritonError where it does not answer."""
        try:
            return AgentState.model_validate(await self._call("GET", "/state"))
        except ValidationError as error:
            raise TritonError(f"{self.url}/state is malformed ({first_problem(error)}): see its image") from None

    async def install(self, name: str, release: Release, drill: Drill) -> None:
        """Put a release into the repository under this name, or verify the one there. Raises ArtifactError."""
        body = {"release": release.model_dump(mode="json"), "drill": drill}
        await self._call("PUT", f"/releases/{name}", body, seconds=_INSTALL_SECONDS)

    async def remove(self, name: str) -> None:
        await self._call("DELETE", f"/releases/{name}", seconds=_UNLOAD_SECONDS)

    async def load(self, name: str) -> None:
        await self._call("POST", f"/releases/{name}/load", seconds=LOAD_SECONDS + _CALL_SECONDS)

    async def reload(self, name: str) -> None:
        await self._call("POST", f"/releases/{name}/reload", seconds=LOAD_SECONDS + _CALL_SECONDS)

    async def unload(self, name: str) -> None:
        await self._call("POST", f"/releases/{name}/unload", seconds=_UNLOAD_SECONDS)

    async def probe(self, name: str, text: str, *, timeout: float = 10.0) -> None:
        """Ask for a single token."""
        await self._generate(name, {"text": text, "max_tokens": 1, "timeout": timeout})

    async def generate(self, name: str, *, messages: Sequence[dict[str, Any]], timeout: float) -> Answer:
        answer = await self._generate(name, {"messages": list(messages), "timeout": timeout})
        return Answer(**{key: answer[key] for key in Answer._fields})

    async def golden(self, engine: str) -> str:
        """Return the text of the file with the golden prompts of an installed engine."""
        return (await self._call("GET", f"/engines/{engine}/golden"))["text"]

    async def serve(self, names: set[str]) -> None:
        """Set the releases that have to be loaded before the pod takes requests."""
        await self._call("PUT", "/serves", {"names": sorted(names)})

    async def _generate(self, name: str, body: dict[str, Any]) -> dict[str, Any]:
        return await self._call("POST", f"/releases/{name}/generate", body, seconds=body["timeout"] + _CALL_SECONDS)

    async def _call(self, method: str, path: str, body: Any = None, seconds: float = _CALL_SECONDS) -> dict[str, Any]:
        timeout = aiohttp.ClientTimeout(total=seconds, sock_connect=_CALL_SECONDS / 2)
        try:
            async with self._session.request(method, self.url + path, json=body, timeout=timeout) as response:
                document = await response.json()
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            raise NotAvailableError(
                f"the agent at {self.url} does not answer ({type(error).__name__}: {error})"
            ) from None
        if response.status >= 400:
            kind = ERROR_TYPES.get(document.get("kind"), TritonError)
            raise kind(f"{self.url.removeprefix('http://')}: {document.get('error')}")
        return document


def _keepalive_socket(address: aiohttp.AddrInfoType) -> socket.socket:
    """Return a socket with keep-alive: a lost node closes no connection, and a call may have an hour to time out."""
    family, kind, protocol, *_ = address
    made = socket.socket(family, kind, protocol)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in _KEEPALIVE:
        made.setsockopt(socket.IPPROTO_TCP, option, value)
    return made


class AgentResolver:
    """Resolves addresses to agents. Use as an asynchronous context manager.

    Args:
        addresses: host:port; a host with many addresses, as a headless Service has, gives an agent for each.
    """

    def __init__(self, addresses: Sequence[str], token: str) -> None:
        self._addresses = [address.rpartition(":") for address in addresses]
        self._token = token

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            headers={"Authorization": f"Bearer {self._token}"},
            connector=aiohttp.TCPConnector(socket_factory=_keepalive_socket),
        )
        self._agents: dict[str, Agent] = {}
        self._known: dict[str, list[str]] = {}
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()

    async def __call__(self) -> dict[str, Agent]:
        """Return the agents by IP address and port; none where the name is unknown, as it is while no pod exists."""
        found = sorted({one for host, _, port in self._addresses for one in await self._resolve(host, port)})
        self._agents = {one: self._agents.get(one) or Agent(f"http://{one}", self._session) for one in found}
        return self._agents

    async def _resolve(self, host: str, port: str) -> list[str]:
        """Return the addresses of a host; those found last where the name server does not answer."""
        try:
            found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except socket.gaierror as error:
            return self._known.get(f"{host}:{port}", []) if error.errno in (socket.EAI_AGAIN, socket.EAI_FAIL) else []
        addresses = [(str(address[0]), int(address[1])) for *_, address in found]
        self._known[f"{host}:{port}"] = [
            f"[{ip}]:{number}" if ":" in ip else f"{ip}:{number}" for ip, number in addresses
        ]
        return self._known[f"{host}:{port}"]
