"""A request for text, and the pieces that answer it, whichever protocol they came by."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jobs.serving.router.errors import RequestError
from jobs.serving.router.limits import Limits

ROLES = ("system", "user", "assistant")
MAX_STOPS = 16
MAX_MESSAGES = 256
MIN_TEMPERATURE = 0.01
"""Below it, sampling is greedy in effect, and 32-bit logits overflow when they are divided by it."""
MIN_JUDGED_TOKENS = 16


@dataclass(frozen=True, slots=True)
class Generation:
    """A request for text, checked against the limits: a prompt or messages, and how to generate.

    Attributes:
        messages: of {"role", "content"}; exactly one of prompt and messages is set.
        temperature: 0 or None: greedy.
        stop: the answer ends before any of these.
    """

    prompt: str | None = None
    messages: list[dict[str, str]] | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    stop: tuple[str, ...] = ()

    @property
    def greedy(self) -> bool:
        return not self.temperature

    @property
    def judged(self) -> bool:
        """Whether the answer counts as evidence: not where the request itself can empty or truncate it.

        The request alone decides, never the answer: an arm that does not stop is judged.
        """
        return not self.stop and (self.max_tokens is None or self.max_tokens >= MIN_JUDGED_TOKENS)

    def body(self, *, stream: bool) -> bytes:
        """Return the inputs of the Triton model as the body of `generate` or `generate_stream`."""
        fields: dict[str, Any] = {"stream": stream}
        if self.prompt is not None:
            fields["text_input"] = self.prompt
        else:
            fields["messages"] = json.dumps(self.messages)
        for name in ("max_tokens", "temperature", "top_p"):
            value = getattr(self, name)
            if value is not None:
                fields[name] = value
        if self.stop:
            fields["stop"] = json.dumps(self.stop)
        return json.dumps(fields).encode()


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece of an answer, or all of it.

    Attributes:
        finish_reason: "stop" or "length" with the last piece; empty before.
        completion_tokens: up to and with this piece.
    """

    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int


def make_generation(
    limits: Limits,
    *,
    prompt: Any = None,
    messages: Any = None,
    stop: Any = None,
    names: Mapping[str, str] | None = None,
    **numbers: Any,
) -> Generation:
    """Return a request for text from the fields that a client sent, once they are checked.

    Args:
        messages: a list of {"role", "content"}, the content a text or a list of {"type": "text", "text"} parts.
        stop: a text or a list of them.
        names: what the client calls a field, where that is not the name here.
        numbers: `max_tokens`, `temperature`, `top_p`, each None where the client left it out.

    Raises:
        RequestError: 400, naming the field.
    """
    called = names or {}
    if (prompt is None) == (messages is None):
        raise _invalid(called.get("prompt", "prompt"), "send a prompt or messages, one of the two")
    if prompt is not None:
        text = prompt = _text(prompt, called.get("prompt", "prompt"))
    else:
        messages = _messages(messages)
        text = "".join(message["content"] for message in messages)
    if not text:
        raise _invalid(called.get("prompt", "prompt") if messages is None else "messages", "it is empty")
    if len(text.encode()) > limits.prompt_bytes:
        raise _invalid(
            called.get("prompt", "prompt") if messages is None else "messages",
            f"it is {len(text.encode())} bytes long, at most {limits.prompt_bytes} are taken",
        )
    return Generation(
        prompt=prompt,
        messages=messages,
        max_tokens=_integer(
            numbers.get("max_tokens"), called.get("max_tokens", "max_tokens"), least=1, most=limits.answer_tokens
        ),
        temperature=_temperature(numbers.get("temperature")),
        top_p=_number(numbers.get("top_p"), "top_p", least=1e-6, most=1),
        stop=_stops(stop),
    )


def read_json(body: bytes | str) -> Any:
    """Return the value of a JSON document. Raises RequestError (400) where it is not JSON."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RequestError(400, f"the body is not JSON ({error}): send one JSON object") from None


def read_object(body: bytes) -> dict[str, Any]:
    """Return a JSON object. Raises RequestError (400) where the body is not one."""
    document = read_json(body)
    if not isinstance(document, dict):
        raise RequestError(400, "the body is JSON, but not an object: send {…}")
    return document


def _invalid(field: str, message: str) -> RequestError:
    return RequestError(400, f"{field}: {message}", field=field)


def _text(value: Any, field: str) -> str:
    if not isinstance(value, str):
        raise _invalid(field, "it must be a text")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise _invalid(field, "it holds half a surrogate pair, which is not text") from None
    return value


def _messages(value: Any) -> list[dict[str, str]]:
    if not isinstance(value, list) or not value:
        raise _invalid("messages", "it must be a list with at least one message")
    if len(value) > MAX_MESSAGES:
        raise _invalid("messages", f"there are {len(value)}, at most {MAX_MESSAGES} are taken")
    return [_message(message, f"messages[{index}]") for index, message in enumerate(value)]


def _message(value: Any, field: str) -> dict[str, str]:
    if not isinstance(value, dict):
        raise _invalid(field, 'it must be an object with "role" and "content"')
    role = value.get("role")
    # OpenAI's newer name of that role.
    role = "system" if role == "developer" else role
    if role not in ROLES:
        raise _invalid(f"{field}.role", f"it must be one of {', '.join(ROLES)}")
    for unsupported in ("tool_calls", "function_call", "audio"):
        if value.get(unsupported):
            raise _invalid(f"{field}.{unsupported}", "it is not supported; leave it out")
    content = value.get("content")
    if isinstance(content, list):
        return {"role": role, "content": "".join(_part(part, f"{field}.content") for part in content)}
    return {"role": role, "content": _text(content, f"{field}.content")}


def _part(value: Any, field: str) -> str:
    if not isinstance(value, dict) or value.get("type") != "text":
        raise _invalid(field, 'only parts {"type": "text", "text": …} are supported')
    return _text(value.get("text"), field)


def _stops(value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or len(stops) > MAX_STOPS or "" in stops:
        raise _invalid("stop", f"it must be a text or a list of at most {MAX_STOPS} texts, none of them empty")
    return tuple(_text(stop, "stop") for stop in stops)


def _integer(value: Any, field: str, *, least: int, most: int) -> int | None:
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise _invalid(field, f"it must be a whole number from {least} to {most}")
    return value


def _temperature(value: Any) -> float | None:
    temperature = _number(value, "temperature", least=0, most=2)
    return 0.0 if temperature is not None and temperature < MIN_TEMPERATURE else temperature


def _number(value: Any, field: str, *, least: float, most: float) -> float | None:
    if value is None:
        return None
    if not isinstance(value, int | float) or isinstance(value, bool) or not least <= value <= most:
        raise _invalid(field, f"it must be a number from {least} to {most}")
    # Triton's JSON reader wants a fraction where the input is one.
    return float(value)
