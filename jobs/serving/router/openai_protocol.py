"""OpenAI's completions and chat completions: reading requests, writing answers.

Fields that would change the answer and cannot be followed are refused by name; others are left alone, and so is `seed`
where the answer is greedy.
Source: https://platform.openai.com/docs/api-reference
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from jobs.serving.router.errors import RequestError
from jobs.serving.router.generation import Generation, Piece, make_generation
from jobs.serving.router.limits import Limits

Endpoint = Literal["completions", "chat"]

_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
    "logit_bias": ({},),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "repetition_penalty": (1,),
    "top_k": (-1, 0),
    "min_p": (0,),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "web_search_options": (),
    "top_logprobs": (0,),
    "ignore_eos": (False,),
    "min_tokens": (0,),
    "stop_token_ids": ([],),
}
"""Fields that cannot be followed, with the values that change nothing; null never does."""


@dataclass(frozen=True, slots=True)
class Request:
    """What a client asks for, and how it wants to be answered."""

    endpoint: Endpoint
    model: str
    generation: Generation
    stream: bool
    include_usage: bool


def read_request(endpoint: Endpoint, document: Mapping[str, Any], limits: Limits) -> Request:
    """Return the request in a body. Raises RequestError (400) naming the field that is wrong or not supported."""
    model = document.get("model")
    if not isinstance(model, str):
        raise RequestError(400, "model: name the model as a text", field="model")
    _refuse_unsupported(endpoint, document)
    stream = _flag(document, "stream")
    options = document.get("stream_options")
    if options is not None and not isinstance(options, dict):
        raise RequestError(400, "stream_options: it must be an object", field="stream_options")
    generation = make_generation(
        limits,
        prompt=_prompt(document) if endpoint == "completions" else None,
        messages=(document.get("messages") or []) if endpoint == "chat" else None,
        stop=document.get("stop"),
        names={"max_tokens": _max_tokens(document)},
        max_tokens=document.get(_max_tokens(document)),
        **{name: document.get(name) for name in ("temperature", "top_p")},
    )
    if document.get("seed") is not None and not generation.greedy:
        raise RequestError(
            400,
            "seed: sampling cannot be repeated here; leave it out, or set temperature to 0",
            field="seed",
            code="unsupported_parameter",
        )
    include_usage = stream and options is not None and _flag(options, "include_usage", "stream_options.include_usage")
    return Request(endpoint, model, generation, stream, include_usage)


class Answer:
    """The answer to one request: as a whole, or in chunks."""

    def __init__(self, request: Request) -> None:
        self._request = request
        chat = request.endpoint == "chat"
        self._prefix = {
            "id": f"{'chatcmpl' if chat else 'cmpl'}-{secrets.token_hex(12)}",
            "object": {(True, True): "chat.completion.chunk", (True, False): "chat.completion"}.get(
                (chat, request.stream), "text_completion"
            ),
            "created": int(time.time()),
            "model": request.model,
        }

    def whole(self, piece: Piece) -> bytes:
        """Return the body that answers a request without `stream`."""
        if self._request.endpoint == "chat":
            content: dict[str, Any] = {"message": {"role": "assistant", "content": piece.text, "refusal": None}}
        else:
            content = {"text": piece.text}
        choice = {"index": 0, **content, "logprobs": None, "finish_reason": piece.finish_reason}
        return json.dumps({**self._prefix, "choices": [choice], "usage": _usage(piece)}).encode()

    def opening(self) -> bytes:
        """Return what a stream begins with, before the first piece."""
        return self._chunk({"role": "assistant", "content": ""}, None) if self._request.endpoint == "chat" else b""

    def piece(self, piece: Piece) -> bytes:
        """Return one piece of a stream as its chunks, and with the last one the end of the stream."""
        if self._request.endpoint == "completions":
            chunks = self._chunk(piece.text, piece.finish_reason or None)
        else:
            chunks = self._chunk({"content": piece.text}, None) if piece.text else b""
            if piece.finish_reason:
                chunks += self._chunk({}, piece.finish_reason)
        if not piece.finish_reason:
            return chunks
        if self._request.include_usage:
            chunks += event({**self._prefix, "choices": [], "usage": _usage(piece)})
        return chunks

    def _chunk(self, content: Any, finish_reason: str | None) -> bytes:
        name = "delta" if self._request.endpoint == "chat" else "text"
        document = {
            **self._prefix,
            "choices": [{"index": 0, name: content, "logprobs": None, "finish_reason": finish_reason}],
        }
        if self._request.include_usage:
            document["usage"] = None
        return event(document)


DONE = b"data: [DONE]\n\n"


def event(document: Any) -> bytes:
    """Return a server-sent event."""
    return b"data: " + json.dumps(document).encode() + b"\n\n"


def models(names: list[str]) -> dict[str, Any]:
    """Return the list of models."""
    return {"object": "list", "data": [model(name) for name in names]}


def model(name: str) -> dict[str, Any]:
    """Return the description of one model as OpenAI's clients read it: {"id", "object", "created", "owned_by"}."""
    return {"id": name, "object": "model", "created": 0, "owned_by": "anemone"}


def error(problem: RequestError) -> dict[str, Any]:
    """Return an error as OpenAI's clients read it."""
    return {
        "error": {
            "message": problem.message,
            "type": "invalid_request_error" if problem.status < 500 else "server_error",
            "param": problem.field,
            "code": problem.code,
        }
    }


def _refuse_unsupported(endpoint: Endpoint, document: Mapping[str, Any]) -> None:
    for field in _NEUTRAL.keys() & document.keys():
        value = document[field]
        if value is not None and value not in _NEUTRAL[field]:
            raise RequestError(
                400,
                f"{field}: this is not supported and would change the answer; leave it out",
                field=field,
                code="unsupported_parameter",
            )
    # A flag for chats; for completions a number, and 0 still asks for those of the chosen tokens.
    logprobs = document.get("logprobs")
    if logprobs is not None and not (endpoint == "chat" and logprobs is False):
        raise RequestError(
            400, "logprobs: they are not supported; leave it out", field="logprobs", code="unsupported_parameter"
        )


def _prompt(document: Mapping[str, Any]) -> Any:
    prompt = document.get("prompt", "")
    if isinstance(prompt, list):
        if len(prompt) != 1 or not isinstance(prompt[0], str):
            raise RequestError(400, "prompt: send one text; lists and tokens are not supported", field="prompt")
        return prompt[0]
    return "" if prompt is None else prompt


def _max_tokens(document: Mapping[str, Any]) -> str:
    return "max_completion_tokens" if document.get("max_completion_tokens") is not None else "max_tokens"


def _flag(document: Mapping[str, Any], name: str, field: str | None = None) -> bool:
    value = document.get(name)
    if value is not None and not isinstance(value, bool):
        raise RequestError(400, f"{field or name}: it must be true or false", field=field or name)
    return bool(value)


def _usage(piece: Piece) -> dict[str, int]:
    return {
        "prompt_tokens": piece.prompt_tokens,
        "completion_tokens": piece.completion_tokens,
        "total_tokens": piece.prompt_tokens + piece.completion_tokens,
    }
