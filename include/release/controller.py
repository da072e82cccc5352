"""The canary controller's API, as Airflow's side uses it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
from pydantic import ValidationError

from include.errors import ConfigurationError, TryAgainError
from include.events import format_event
from include.platforms import Serving
from include.release.rollouts import RolloutRequest, RolloutStatus, TargetStatus

if TYPE_CHECKING:
    from include.specs.base import Model

_TIMEOUT = 10.0
"""Seconds; the controller answers from memory."""


class OtherRolloutError(TryAgainError):
    """The target is taken by another rollout, whose id is `rollout`."""

    def __init__(self, message: str, rollout: str) -> None:
        super().__init__(message)
        self.rollout = rollout


class Controller:
    """A client of one canary controller.

    The token is read from its file for each request, so that a new one is taken up, and is kept nowhere.

    Every method raises TryAgainError where the controller does not answer or fails, and ConfigurationError where it
    refuses what it was asked.
    """

    def __init__(self, serving: Serving) -> None:
        self._url = serving.controller_url
        self._token_file = Path(serving.token_file)

    def start(self, request: RolloutRequest) -> RolloutStatus:
        """Ask for a rollout; the same request again joins it.

        Raises:
            OtherRolloutError: another rollout goes on at the target.
        """
        answer = self._send("POST", "/rollouts", json=request.model_dump(mode="json"), accept=(200, 201, 409))
        if answer.status_code == 409:
            told = _told(answer)
            other = told.get("rollout")
            if other is None:
                raise TryAgainError(f"the canary controller cannot begin {request.id} now: {told['error']}")
            if other == request.id:
                raise ConfigurationError(
                    f"this task asked for rollout {other} before, with other words ({told['error']}): what it releases "
                    "was changed in between; start a new run of the DAG"
                )
            raise OtherRolloutError(
                f"rollout {other} goes on at {request.target}: this one starts once it has ended; "
                "to end it now, mark its task as failed",
                other,
            )
        return self._parsed(RolloutStatus, answer)

    def status(self, rollout: str) -> RolloutStatus | None:
        """How a rollout stands; None where the controller does not know it."""
        answer = self._send("GET", f"/rollouts/{rollout}", accept=(200, 404))
        return self._parsed(RolloutStatus, answer) if answer.status_code == 200 else None

    def abort(self, rollout: str, reason: str) -> str | None:
        """Take a rollout back to the champion; does nothing to one that has ended.

        Returns:
            None, or why it does not go back: it is promoted already.
        """
        answer = self._send("POST", f"/rollouts/{rollout}/abort", json={"reason": reason}, accept=(200, 404, 409))
        return str(_told(answer)["error"]) if answer.status_code == 409 else None

    def target(self, target: str) -> TargetStatus | None:
        """What a target serves; None where nothing was ever released on it."""
        answer = self._send("GET", f"/targets/{target}", accept=(200, 404))
        return self._parsed(TargetStatus, answer) if answer.status_code == 200 else None

    def _send(self, method: str, path: str, *, accept: tuple[int, ...], **request: Any) -> httpx.Response:
        try:
            token = self._token_file.read_text(encoding="ascii").strip()
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not a token"
            raise TryAgainError(
                f"the canary controller's token {self._token_file} cannot be read ({reason}): `make up` makes it"
            ) from None
        try:
            answer = httpx.request(
                method,
                f"{self._url}{path}",
                headers={"Authorization": f"Bearer {token}"},
                timeout=_TIMEOUT,
                trust_env=False,
                **request,
            )
        except httpx.HTTPError as error:
            raise TryAgainError(
                f"the canary controller does not answer at {self._url} ({str(error) or type(error).__name__}): "
                "`make up` starts it"
            ) from None
        if answer.status_code in accept:
            return answer
        if answer.status_code == 401:
            raise ConfigurationError(
                f"the canary controller at {self._url} does not take the token in {self._token_file}: another "
                "controller listens there, or it was started with an older token; start it again"
            )
        reason = _told(answer)["error"]
        if answer.status_code >= 500:
            raise TryAgainError(f"the canary controller failed at {method} {path} ({reason}): see its log")
        raise ConfigurationError(f"the canary controller refused {method} {path}: {reason}")

    def _parsed(self, model: type[Model], answer: httpx.Response) -> Any:
        try:
            return model.model_validate_json(answer.content)
        except ValidationError as error:
            first = error.errors()[0]
            raise ConfigurationError(
                f"what answers at {self._url} is not this Anemone's canary controller "
                f"({'.'.join(map(str, first['loc'])) or 'body'}: {first['msg']}): start serving and Airflow from the "
                "same version"
            ) from None


def news(status: RolloutStatus, told: int) -> list[str]:
    """The notes of a rollout after the first `told`, a `key=value` line each."""
    return [
        format_event("note", {"at": f"{note.time:%H:%M:%S}", "state": note.state, "message": note.message})
        for note in status.notes[told:]
    ]


def _told(answer: httpx.Response) -> dict[str, Any]:
    """The controller's own words: {"error", …}."""
    try:
        body = answer.json()
    except ValueError:
        body = None
    if isinstance(body, dict) and "error" in body:
        return body
    return {"error": f"status {answer.status_code}: {answer.text[:300]}"}
