"""The requests of clients: the demo's held-out ones, each in one of the forms that the router takes."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

from jobs.demo.requests.intents import COMMANDS
from jobs.demo.requests.sampling import requests

Form = Literal["chat", "chat_stream", "completion", "completion_stream", "generate", "generate_stream"]

SHARES: dict[Form, float] = {
    "chat": 0.35,
    "chat_stream": 0.25,
    "completion": 0.1,
    "completion_stream": 0.1,
    "generate": 0.1,
    "generate_stream": 0.1,
}
POOL = 2000
"""Different prompts; the first of them are those that a held-out artifact of the same seed holds."""

MAX_TOKENS = 24
"""Of an answer, as the demo's recipe evaluates; the longest command has fewer."""


@dataclass(frozen=True)
class Request:
    """One HTTP request: `path` below the router's address and the JSON `body`."""

    form: Form
    path: str
    body: dict[str, Any]

    @property
    def streams(self) -> bool:
        return self.form.endswith("_stream")


def draw_requests(model: str, seed: int) -> Iterator[Request]:
    """Yield requests to `model` without end: all forms, in English and Korean, drawn independently from a seed."""
    rng = random.Random(f"traffic:{seed}")
    prompts = [row["prompt"] for row in islice(requests("heldout", seed, tuple(COMMANDS)), POOL)]
    forms, weights = list(SHARES), list(SHARES.values())
    while True:
        yield make_request(model, rng.choices(forms, weights)[0], rng.choice(prompts))


def make_request(model: str, form: Form, prompt: str) -> Request:
    """Return `prompt` as a greedy request in the given form."""
    messages = [{"role": "user", "content": prompt}]
    if form in ("generate", "generate_stream"):
        body = {"messages": json.dumps(messages, ensure_ascii=False), "max_tokens": MAX_TOKENS, "temperature": 0.0}
        if form == "generate_stream":
            body["stream"] = True
        return Request(form, f"/v2/models/{model}/{form}", body)
    body = {"model": model, "max_tokens": MAX_TOKENS, "temperature": 0, "stream": form.endswith("_stream")}
    if form in ("chat", "chat_stream"):
        return Request(form, "/v1/chat/completions", {**body, "messages": messages})
    return Request(form, "/v1/completions", {**body, "prompt": as_text(prompt)})


def as_text(prompt: str) -> str:
    """Return the bare text that the demo's model was tuned to continue (include/templates/kubectl.jinja)."""
    return f"<|begin|><|user|> {prompt}\n<|assistant|>"
