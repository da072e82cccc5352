"""Which version is live, as the canary controller knows it."""

from __future__ import annotations

import json
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import ProxyHandler, Request, build_opener

from pydantic import ValidationError

from include.errors import ConfigurationError, TryAgainError
from include.release.rollouts import TargetStatus

_TIMEOUT = 10.0
"""Seconds; the controller answers from memory."""

_open = build_opener(ProxyHandler({})).open


def live_version(controller_url: str, token_file: Path, model: str) -> str:
    """The version of `model` that takes the traffic now.

    Raises:
        ConfigurationError: nothing is live, or what answers is not the controller that the token is for.
        TryAgainError: the controller does not answer, or fails.
    """
    try:
        token = token_file.read_text(encoding="ascii").strip()
    except (OSError, ValueError) as error:
        raise TryAgainError(
            f"the canary controller's token {token_file} cannot be read ({error}): `make up` makes it"
        ) from None
    request = Request(f"{controller_url}/targets/{model}", headers={"Authorization": f"Bearer {token}"})
    try:
        with _open(request, timeout=_TIMEOUT) as answer:
            status = TargetStatus.model_validate_json(answer.read())
    except HTTPError as error:
        if error.code >= 500:
            raise TryAgainError(f"the canary controller failed ({error.code}): see its log") from None
        if error.code != 404:
            raise ConfigurationError(
                f"the canary controller at {controller_url} refused to say what is live on {model} "
                f"({error.code}: {_words(error)})"
            ) from None
        status = TargetStatus(target=model)
    except ValidationError:
        raise ConfigurationError(
            f"what answers at {controller_url} is not this Anemone's canary controller: start serving and Airflow from "
            "the same version"
        ) from None
    except (OSError, HTTPException) as error:
        raise TryAgainError(
            f"the canary controller does not answer at {controller_url} ({error}): `make up` starts it"
        ) from None
    if status.champion is None:
        raise ConfigurationError(
            f"nothing is live on {model} any more: it was taken out of service; release a version to put it back"
        )
    return status.champion.release.version


def _words(error: HTTPError) -> str:
    try:
        return str(json.loads(error.read())["error"])
    except (OSError, ValueError, KeyError, TypeError):
        return error.reason
