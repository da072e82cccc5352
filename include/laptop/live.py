"""Taking what is live out of service, so that a demo can begin anew."""

from __future__ import annotations

import os
import subprocess

import httpx

from include.errors import AnemoneError, TryAgainError
from include.home import PROJECT
from include.laptop.home import python_of
from include.laptop.serving import controller_url, token
from include.platforms import load_platform
from include.release.rollouts import RETIRE_SECONDS

_TIMEOUT = RETIRE_SECONDS + 30.0
"""Seconds; the controller's own word on a retirement that lasts has to arrive."""


def retire(target: str) -> bool:
    """Take a target out of service, and its champion's title in the model registry with it.

    Returns:
        Whether anything was live, or on its way.

    Raises:
        TryAgainError: the controller does not answer.
        AnemoneError: the registry did not take it.
    """
    was_live = _send("GET", f"/targets/{target}").status_code == 200
    _send("DELETE", f"/targets/{target}")
    environment = {**os.environ, **load_platform("laptop").environment}
    command = [str(python_of("jobs")), "-m", "jobs.promote.withdraw", target]
    result = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True)
    if result.returncode:
        last = (result.stderr.strip().splitlines() or [f"exit code {result.returncode}"])[-1]
        raise AnemoneError(f"{target} is out of service, but its champion is still named in MLflow: {last}")
    return was_live


def _send(method: str, path: str) -> httpx.Response:
    """The answer to a request that may find nothing there."""
    headers = {"Authorization": f"Bearer {token()}"}
    try:
        answer = httpx.request(method, f"{controller_url()}{path}", headers=headers, timeout=_TIMEOUT, trust_env=False)
    except httpx.HTTPError as error:
        raise TryAgainError(
            f"the canary controller does not answer at {controller_url()} ({str(error) or type(error).__name__}): "
            "`make up` starts it"
        ) from None
    if answer.is_error and answer.status_code != 404:
        raise AnemoneError(f"the canary controller refused {method} {path} ({answer.status_code}): {answer.text}")
    return answer
