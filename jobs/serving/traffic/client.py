"""One request of a client: sent, read to its end, and judged."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import aiohttp

from jobs.serving.traffic.requests import Request

UNAVAILABLE = (404, 503)
"""The router's statuses for a model that has no release."""


@dataclass(frozen=True)
class Answer:
    """The outcome of a request.

    Attributes:
        failure: None for a sound answer; otherwise what is wrong with it, in a word.
        detail: of a failure, the server's or library's own words.
        status: HTTP status; None where none came.
        first_token: seconds to the first piece of text of a stream. `total`: seconds to the end.
    """

    text: str
    failure: str | None
    total: float
    detail: str = ""
    status: int | None = None
    first_token: float | None = None

    @property
    def unavailable(self) -> bool:
        return self.status in UNAVAILABLE


class _FailedError(Exception):
    """A request that went wrong: what in a word, and the details."""


async def send(session: aiohttp.ClientSession, url: str, request: Request, timeout: float) -> Answer:
    """Send one request and read its answer to the end; never raise for what the server does."""
    began = time.perf_counter()
    status: int | None = None
    first: float | None = None
    pieces: list[str] = []
    failure, detail = None, ""
    try:
        async with session.post(
            url + request.path, json=request.body, timeout=aiohttp.ClientTimeout(total=timeout)
        ) as response:
            status = response.status
            if status != 200:
                raise _FailedError(f"status_{status}", (await response.text())[:300])
            if request.streams:
                async for piece in _pieces(response):
                    if piece and first is None:
                        first = time.perf_counter() - began
                    pieces.append(piece)
            else:
                pieces.append(_text(await response.json(content_type=None)))
    except _FailedError as error:
        failure, detail = error.args
    except TimeoutError:
        failure, detail = "timed_out", f"no end after {timeout:g} s"
    except aiohttp.ClientPayloadError as error:
        failure, detail = "broken_body", str(error)
    except (aiohttp.ClientError, OSError) as error:
        failure, detail = "connection", f"{type(error).__name__}: {error}"
    except (ValueError, RecursionError) as error:
        failure, detail = "not_json", str(error)
    return Answer("".join(pieces), failure, time.perf_counter() - began, detail, status, first)


async def _pieces(response: aiohttp.ClientResponse) -> AsyncIterator[str]:
    """Yield the pieces of text of a server-sent event stream. Raises _FailedError where it breaks or has an error."""
    ended = False
    async for raw in response.content:
        line = raw.decode("utf-8").strip()
        if not line.startswith("data:"):
            continue
        data = line.removeprefix("data:").strip()
        if data == "[DONE]":
            ended = True
            continue
        document = json.loads(data)
        yield _text(document)
        ended = ended or ("text_output" in document and bool(document.get("finish_reason")))
    if not ended:
        raise _FailedError("broken_stream", "the stream ended without its end marker")


def _text(document: Any) -> str:
    """Return the text in one JSON answer, or in one event of a stream, of either protocol.

    Raises:
        _FailedError: it holds an error, or is neither protocol's answer.
    """
    try:
        if document.get("error"):
            raise _FailedError("error_body", str(document["error"])[:300])
        text = document["text_output"] if "text_output" in document else _chosen(document["choices"])
    except (AttributeError, LookupError, TypeError):
        text = None
    if not isinstance(text, str):
        raise _FailedError("not_an_answer", str(document)[:300])
    return text


def _chosen(choices: list[dict[str, Any]]) -> Any:
    """Return OpenAI's text; "" in an event without one: a stream's first has the role, its last the usage."""
    if choices == []:
        return ""
    choice = choices[0]
    part = choice.get("message") or choice.get("delta") or choice
    text = part.get("content", part.get("text"))
    return "" if text is None else text
