"""`make ask PROMPT="…"`: one request to the live model, as any OpenAI client would send it."""

from __future__ import annotations

import sys

import httpx

from include.errors import AnemoneError, ConfigurationError, TryAgainError
from include.laptop.serving import router_url
from include.platforms import load_platform
from include.recipes import resolve


def ask(prompt: str, model: str | None = None) -> str:
    """Return the answer of `model`, or of the arrivals' recipe's model. Raises TryAgainError where there is none."""
    model = model or resolve(load_platform("laptop").arrivals.recipe).model
    body = {"model": model, "messages": [{"role": "user", "content": prompt}], "temperature": 0}
    try:
        answer = httpx.post(f"{router_url()}/v1/chat/completions", json=body, timeout=60, trust_env=False)
    except httpx.HTTPError as error:
        raise TryAgainError(f"the router does not answer at {router_url()} ({error}): `make up` starts it") from None
    if answer.status_code == 404:
        raise TryAgainError(f"{model} is not live at {router_url()}: release a version first; `make demo` does")
    if answer.status_code != 200:
        raise TryAgainError(f"{model} did not answer ({answer.status_code}): {answer.text.strip()[:300]}")
    return str(answer.json()["choices"][0]["message"]["content"])


if __name__ == "__main__":
    try:
        if not (prompt := " ".join(sys.argv[1:]).strip()):
            raise ConfigurationError('PROMPT is not set: make ask PROMPT="show the logs of checkout in prod"')
        print(ask(prompt))
    except (AnemoneError, ValueError) as error:
        sys.exit(f"error: {error}")
