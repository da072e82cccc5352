"""A client of Triton's `generate` extension: answers whole or as a stream, with time-outs and every body read.

A decoupled model's error can come with status 200, in the body or in the middle of a stream: the body decides.
"""

from __future__ import annotations

import asyncio
import json

import aiohttp
from aiohttp.http_exceptions import LineTooLong
from yarl import URL

from jobs.serving.router.errors import ArmError, RejectedError
from jobs.serving.router.generation import Generation, Piece
from jobs.serving.router.limits import Timeouts

_REJECTED = "INVALID_ARGUMENT: "
_FULL = ("Exceeds maximum queue size", "Request timeout expired")
_ABSENT = ("unknown model", "is not ready", "has no available versions", "is not found")
_HEADERS = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
_READ_BUFFER = 1024 * 1024
_MAX_TOKENS = 2**31


class Upstream:
    """Triton's HTTP endpoint, with a pool of connections.

    Args:
        fresh: use a new connection for each request. Behind a Service a pooled one stays with its pod, even while that
            pod is terminating; a new one goes to a pod that is ready.
    """

    def __init__(self, url: str, timeouts: Timeouts, *, fresh: bool = False) -> None:
        self._url = URL(url)
        self._timeouts = timeouts
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, force_close=True)
            if fresh
            else aiohttp.TCPConnector(limit=0, keepalive_timeout=60),
            cookie_jar=aiohttp.DummyCookieJar(),
            read_bufsize=_READ_BUFFER,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=timeouts.connect),
        )
        self._whole = aiohttp.ClientTimeout(total=timeouts.total, sock_connect=timeouts.connect)
        self._urls: dict[tuple[str, str], URL] = {}

    async def close(self) -> None:
        await self._session.close()

    async def answer(self, release: str, generation: Generation) -> Piece:
        """Return the whole answer.

        Raises:
            RejectedError: the model says that the request is wrong.
            ArmError: there is no sound answer for any other reason.
        """
        try:
            async with self._session.post(
                self._endpoint(release, "generate"),
                data=generation.body(stream=False),
                headers=_HEADERS,
                timeout=self._whole,
            ) as response:
                body = await response.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise _broken(error) from error
        piece = _piece(response.status, body)
        if not piece.finish_reason:
            raise ArmError(502, "the answer came without a finish_reason")
        return piece

    async def open_stream(self, release: str, generation: Generation) -> AnswerStream:
        """Return a stream once its first piece has come. Raises the same errors as `answer`."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        response = None
        try:
            async with asyncio.timeout(min(self._timeouts.first_token, self._timeouts.total)):
                response = await self._session.post(
                    self._endpoint(release, "generate_stream"), data=generation.body(stream=True), headers=_HEADERS
                )
                if response.status != 200:
                    # Raises: such a body holds nothing but an error, which may be written as a piece of the stream.
                    _piece(response.status, (await response.read()).removeprefix(b"data:"))
                first = await _next_piece(response)
                if first is None:
                    raise ArmError(502, "the stream ended before its first piece")
        except BaseException as error:
            if response is not None:
                response.close()
            if isinstance(error, aiohttp.ClientError | TimeoutError | OSError):
                raise _broken(error) from error
            raise
        return AnswerStream(response, first, self._timeouts, waited=loop.time() - began)

    async def ready(self, release: str | None = None) -> bool:
        """Return whether Triton, or a release in it, says that it is ready."""
        path = "v2/health/ready" if release is None else f"v2/models/{release}/ready"
        try:
            async with self._session.get(
                self._url / path, timeout=aiohttp.ClientTimeout(total=self._timeouts.connect)
            ) as response:
                return response.status == 200
        except (aiohttp.ClientError, TimeoutError, OSError):
            return False

    def _endpoint(self, release: str, verb: str) -> URL:
        key = release, verb
        if key not in self._urls:
            self._urls[key] = self._url / f"v2/models/{release}/{verb}"
        return self._urls[key]


class AnswerStream:
    """A stream from Triton, from its first piece on. It must be closed in every case."""

    def __init__(self, response: aiohttp.ClientResponse, first: Piece, timeouts: Timeouts, *, waited: float) -> None:
        self.first = first
        self._response = response
        self._timeouts = timeouts
        self._waited = waited

    async def next(self) -> Piece:
        """Return the next piece; must not be called after the one with a finish_reason.

        Raises:
            ArmError: the stream broke, ended early, or paused for too long.
        """
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            async with asyncio.timeout(min(self._timeouts.between_tokens, self._timeouts.total - self._waited)):
                piece = await _next_piece(self._response)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise _broken(error) from error
        except RejectedError as error:
            raise ArmError(502, f"refused in the middle of a stream: {error}") from error
        self._waited += loop.time() - began
        if piece is None:
            raise ArmError(502, "the stream ended without a finish_reason")
        return piece

    async def finish(self) -> None:
        """Read the stream to its end, so that the connection can be used again."""
        try:
            async with asyncio.timeout(self._timeouts.connect):
                await self._response.read()
        except (aiohttp.ClientError, TimeoutError, OSError):
            self.close()

    def close(self) -> None:
        """End the stream, so that Triton stops generating; do nothing where it was read to its end."""
        self._response.close()


async def _next_piece(response: aiohttp.ClientResponse) -> Piece | None:
    try:
        while line := await response.content.readline():
            if line.startswith(b"data:"):
                return _piece(200, line[5:])
    except LineTooLong as error:
        raise ArmError(502, f"a line of a stream that is too long: {str(error)[:200]}") from None
    return None


def _piece(status: int, body: bytes) -> Piece:
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        raise ArmError(502, f"status {status} with a body that is not JSON: {body[:200]!r}") from None
    error = document.get("error") if isinstance(document, dict) else None
    if error is not None or status != 200:
        raise _refusal(status, str(error))
    try:
        piece = Piece(
            document["text_output"],
            document["finish_reason"],
            document["prompt_tokens"],
            document["completion_tokens"],
        )
    except (KeyError, TypeError) as missing:
        raise ArmError(502, f"an answer without {missing}: {body[:200]!r}") from None
    if not (_is_text(piece.text) and piece.finish_reason in ("", "stop", "length")) or not all(
        type(tokens) is int and 0 <= tokens < _MAX_TOKENS for tokens in (piece.prompt_tokens, piece.completion_tokens)
    ):
        raise ArmError(502, f"an answer with a value of a wrong type: {body[:200]!r}")
    return piece


def _is_text(value: object) -> bool:
    """Return whether this is text that every protocol can carry: half a surrogate pair, which JSON can hold, is not."""
    try:
        return isinstance(value, str) and (value.isascii() or bool(value.encode()))
    except UnicodeEncodeError:
        return False


def _refusal(status: int, error: str) -> Exception:
    _, rejected, message = error.partition(_REJECTED)
    if rejected:
        return RejectedError(message)
    if any(sign in error for sign in _ABSENT):
        return ArmError(503, error, retriable=True)
    if status == 503 or any(sign in error for sign in _FULL):
        return ArmError(503, error)
    return ArmError(502, f"status {status}: {error}")


def _broken(error: BaseException) -> ArmError:
    reason = str(error) or type(error).__name__
    if isinstance(error, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError):
        return ArmError(503, reason, retriable=True)
    if isinstance(error, TimeoutError):
        return ArmError(504, f"no answer in time ({reason})")
    return ArmError(502, reason, retriable=True)
