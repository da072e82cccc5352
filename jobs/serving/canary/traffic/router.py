"""The router's admin API, as the controller uses it."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Literal, Protocol, Self
from urllib.parse import quote

import aiohttp
from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypedDict

from jobs.serving.router.routes import SlowSeconds, Split

TIMEOUT_SECONDS = 5.0
_LONGEST_ANSWER_SECONDS = 30.0


class RouterError(Exception):
    """The router could not be asked, or its answer is a fault or makes no sense."""


class ConflictError(RouterError):
    """The router refused: somebody else's lease, or its routes are not those that were last seen."""


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


_STATE, _COUNTS, _SAMPLES, _ANYTHING = map(TypeAdapter, (_State, _Counts, _Samples, dict[str, Any]))


class Traffic(Protocol):
    """What leads a target's requests to champion and canary: a router, or a gateway with two (`traffic.gateway`).

    Every call raises RouterError where it does not answer.
    """

    async def state(self) -> dict[str, Any]:
        """{"boot", "targets": {target: …}}."""

    async def routed(self) -> dict[str, set[str]]:
        """{"champion", "canary"}: the releases that clients are sent to now, whoever set that, and however long ago."""

    def refuses(self, target: str) -> str | None:
        """Why this target can never be led here; None where it can."""

    async def put(self, target: str, route: Split, generation: int, holder: str) -> dict[str, Any]:
        """Set a target's route, `generation` being the one last seen (0 where it has none).

        Raises:
            ConflictError: the generation is another by now, or `holder` has no lease and the weight is above 0.
        """

    async def delete(self, target: str) -> None:
        """Take a target out of service; no error where it is not in service."""

    async def lease(self, target: str, holder: str, seconds: float) -> None:
        """Take or renew the lease. Raises ConflictError where another holds it."""

    async def release(self, target: str, holder: str) -> None:
        """Give the lease back; no error where it has lapsed. Raises ConflictError where another holds it."""

    async def counts(self, target: str) -> dict[str, Any]:
        """{"boot", "generations": […]}, cumulative since the boot."""

    async def samples(self, target: str, after: int) -> dict[str, Any]:
        """{"boot", "samples": […], "lost"}: those with a sequence number above `after`."""


class Router:
    """Client of one router: a Traffic. Use as an async context manager."""

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
        return await self._call("GET", "/state", form=_STATE)

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
        return await self._call("GET", f"/targets/{quote(target)}/counts", form=_COUNTS)

    async def samples(self, target: str, after: int) -> dict[str, Any]:
        return await self._call("GET", f"/targets/{quote(target)}/samples?after={after}", form=_SAMPLES)

    async def _call(
        self,
        method: str,
        path: str,
        body: dict[str, Any] | None = None,
        missing_is_fine: bool = False,
        form: TypeAdapter[Any] = _ANYTHING,
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
                return form.dump_python(form.validate_json(await response.read()))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "body"
            raise RouterError(
                f"the router's answer to {method} {path} makes no sense ({where}: {first['msg']}): see that "
                f"{self._url} is the router's admin API, and of the same version"
            ) from None
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            raise RouterError(
                f"the router at {self._url} could not be asked ({type(error).__name__}: {error}): see that it runs"
            ) from None


def releases(*states: dict[str, Any]) -> dict[str, set[str]]:
    """What the targets in these states name, by arm; a canary also where no weight is in force now."""
    targets = [target for state in states for target in state["targets"].values()]
    return {arm: {target[arm] for target in targets if target[arm]} for arm in ("champion", "canary")}
