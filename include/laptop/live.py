"""Takes a live target out of service, so that a demo can start again."""

from __future__ import annotations

import os
import subprocess

from include.errors import AnemoneError
from include.home import PROJECT
from include.laptop.home import python_of
from include.platforms import load_platform
from include.release.controller_client import ControllerClient


def retire(target: str) -> bool:
    """Take a target out of service, and its champion's title in the model registry with it.

    Returns:
        Whether anything was live, or on its way.

    Raises:
        TryAgainError: the controller does not answer, fails, or has not done it in time.
        AnemoneError: the registry did not take it.
    """
    platform = load_platform("laptop")
    controller = ControllerClient(platform.serving.controller_url, platform.serving.token_file)
    was_live = controller.target(target) is not None
    controller.retire(target)
    environment = {**os.environ, **platform.environment}
    command = [str(python_of("jobs")), "-m", "jobs.promote.withdraw", target]
    result = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True)
    if result.returncode:
        last = (result.stderr.strip().splitlines() or [f"exit code {result.returncode}"])[-1]
        raise AnemoneError(f"{target} is out of service, but its champion is still named in MLflow: {last}")
    return was_live
