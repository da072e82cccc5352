"""Which version is live, as the canary controller knows it."""

from __future__ import annotations

from include.errors import ConfigurationError
from include.release.controller_client import ControllerClient


def live_version(controller: ControllerClient, model: str) -> str:
    """Return the version of `model` that takes the traffic now.

    Raises:
        ConfigurationError: nothing is live, or what answers is not the controller that the token is for.
        TryAgainError: the controller does not answer, or fails.
    """
    status = controller.target(model)
    if status is None or status.champion is None:
        raise ConfigurationError(
            f"nothing is live on {model} any more: it was taken out of service; release a version to put it back"
        )
    return status.champion.release.version
