"""The router's admin API, as the controller uses it."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Literal, Self
from urllib.parse import quote

import aiohttp
from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypedDict

from include.errors import first_problem
from jobs.serving.canary.traffic.interface import TIMEOUT_SECONDS, ConflictError, RouterError, releases
from jobs.serving.router.routes import SlowSeconds, Split

_LONGEST_ANSWER_SECONDS = 30.0


class _Arm(TypedDict):
    release: str
    finished: int
    failed: int
    slow: int
    in_flight: int
    first_token: list[tuple[float | None, int]]
    total: list[tuple[float | None, int]]


class _Part(TypedDict):
    generation: int
    weight: float
    slow_seconds: SlowSeconds
    champion: _Arm | None
    canary: _Arm | None


class _Counts(TypedDict):
    boot: str
    generations: list[_Part]


class _Sample(TypedDict):
    seq: int
    generation: int
    arm: Literal["champion", "canary"]
    messages: list[dict[str, str]] | None
    answer: str | None
    failed: bool
    empty: bool
    greedy: bool


class _Samples(TypedDict):
    boot: str
    samples: list[_Sample]
    lost: int


class _Lease(TypedDict):
    holder: str | None


class _Target(TypedDict):
    generation: int
    champion: str | None
    canary: str | None
    weight: float
    sample: float
    slow_seconds: SlowSeconds
    lease: _Lease


class _State(TypedDict):
    boot: str
    targets: dict[str, _Target]


_STATE: TypeAdapter[_State] = TypeAdapter(_State)
_COUNTS: TypeAdapter[_Counts] = TypeAdapter(_Counts)
_SAMPLES: TypeAdapter[_Samples] = TypeAdapter(_Samples)
_ANYTHING: TypeAdapter[dict[str, Any]] = TypeAdapter(dict[str, Any])


class Router:
    """Client of one router. Use as an async context manager."""

    def __init__(self, url: str, token: str) -> None:
        self._url = url.rstrip("/")
        self._token = token
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        timeout = aiohttp.ClientTimeout(total=_LONGEST_ANSWER_SECONDS, sock_connect=TIMEOUT_SECONDS)
        self._session = aiohttp.ClientSession(headers={"Authorization": f"Bearer {self._token}"}, timeout=timeout)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._session is not None
        await self._session.close()

    async def state(self) -> dict[str, Any]:
        return await self._call("GET", "/state", schema=_STATE)

    async def routed(self) -> dict[str, set[str]]:
        return releases(await self.state())

    def refuses(self, target: str) -> str | None:
        return None

    async def put(self, target: str, route: Split, generation: int, holder: str) -> dict[str, Any]:
        body = {**route.model_dump(), "generation": generation, "holder": holder}
        return await self._call("PUT", f"/targets/{quote(target)}", body)

    async def delete(self, target: str) -> None:
        await self._call("DELETE", f"/targets/{quote(target)}", missing_is_fine=True)

    async def lease(self, target: str, holder: str, seconds: float) -> None:
        await self._call("POST", f"/targets/{quote(target)}/lease", {"holder": holder, "seconds": seconds})

    async def release(self, target: str, holder: str) -> None:
        await self._call("DELETE", f"/targets/{quote(target)}/lease", {"holder": holder}, missing_is_fine=True)

    async def counts(self, target: str) -> dict[str, Any]:
        return await self._call("GET", f"/targets/{quote(target)}/counts", schema=_COUNTS)

    async def samples(self, target: str, after: int) -> dict[str, Any]:
        return await self._call("GET", f"/targets/{quote(target)}/samples?after={after}", schema=_SAMPLES)

    async def _call(
        self,
        method: str,
        path: str,
        body: dict[str, Any] | None = None,
        missing_is_fine: bool = False,
        schema: TypeAdapter[Any] = _ANYTHING,
    ) -> dict[str, Any]:
        assert self._session is not None
        try:
            async with self._session.request(method, self._url + path, json=body) as response:
                if response.status == 404 and missing_is_fine:
                    return {}
                if response.status >= 400:
                    text = (await response.text()).strip()[:500]
                    kind = ConflictError if response.status == 409 else RouterError
                    raise kind(f"the router answered {method} {path} with {response.status}: {text}")
                return schema.dump_python(schema.validate_json(await response.read()))
        except ValidationError as error:
            problem = first_problem(error, whole="body")
            raise RouterError(
                f"the router's answer to {method} {path} makes no sense ({problem}): see that "
                f"{self._url} is the router's admin API, and of the same version"
            ) from None
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            raise RouterError(
                f"the router at {self._url} cannot be reached ({type(error).__name__}: {error}): see that it runs"
            ) from None
