"""A client of the canary controller's API: for tasks, jobs, and commands that a person types."""

from __future__ import annotations

import json
import os
from ipaddress import ip_address
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, urlsplit

import urllib3
from pydantic import ValidationError
from urllib3.exceptions import HTTPError

from include.errors import ConfigurationError, TryAgainError, first_problem
from include.events import format_event
from include.home import PROJECT
from include.model import Model
from include.release.rollouts import RETIRE_SECONDS, ControllerState, RolloutRequest, RolloutStatus, TargetStatus

M = TypeVar("M", bound=Model)

_TIMEOUT = 10.0
"""Seconds; the controller answers from memory."""

_RETIRE_TIMEOUT = RETIRE_SECONDS + 30.0
"""Seconds; the controller's answer that a retirement is still in progress has to arrive."""


class OtherRolloutError(TryAgainError):
    """The target is taken by another rollout, whose id is `rollout`."""

    def __init__(self, message: str, rollout: str) -> None:
        super().__init__(message)
        self.rollout = rollout


class ControllerClient:
    """A client of one canary controller.

    The token is read from its file for each request, so that a new one is used at once, and is stored nowhere. Each
    request has a connection of its own, which never leads through a proxy, whatever the environment says.

    Every method raises TryAgainError where the controller does not answer or fails, and ConfigurationError where it
    refuses the request, or where something else answers.
    """

    def __init__(self, url: str, token_file: str | Path) -> None:
        self._url = url
        self._token_file = Path(token_file)

    def start(self, request: RolloutRequest) -> RolloutStatus:
        """Request a rollout; the same request again joins it.

        Raises:
            OtherRolloutError: another rollout is in progress at the target.
            ConfigurationError: the controller refuses it, or knows this rollout with different content.
            TryAgainError: the controller does not answer, or cannot begin a rollout now.
        """
        answer = self._send("POST", "/rollouts", body=request.model_dump(mode="json"), accept=(200, 201, 409))
        if answer.status == 409:
            refusal = _refusal(answer)
            other = refusal.get("rollout")
            if other is None:
                raise TryAgainError(f"the canary controller cannot begin {request.id} now: {refusal['error']}")
            if other == request.id:
                raise ConfigurationError(
                    f"this task requested rollout {other} before, with different content ({refusal['error']}): what it "
                    "releases was changed in between; start a new run of the DAG"
                )
            raise OtherRolloutError(
                f"rollout {other} is in progress at {request.target}: this one starts once it has ended; "
                "to end it now, mark its task as failed",
                other,
            )
        return self._parsed(RolloutStatus, answer)

    def status(self, rollout: str) -> RolloutStatus | None:
        """Return a rollout's status; None where the controller does not know it."""
        answer = self._send("GET", f"/rollouts/{_quoted(rollout)}", accept=(200, 404))
        return self._parsed(RolloutStatus, answer) if answer.status == 200 else None

    def abort(self, rollout: str, reason: str) -> str | None:
        """Roll back to the champion; do nothing where the rollout has ended or is unknown.

        Returns:
            None, or why it is not aborted: it is promoted already.
        """
        path = f"/rollouts/{_quoted(rollout)}/abort"
        answer = self._send("POST", path, body={"reason": reason}, accept=(200, 404, 409))
        return str(_refusal(answer)["error"]) if answer.status == 409 else None

    def resume(self, rollout: str) -> RolloutStatus:
        """Resume a held rollout. The controller refuses one that is not held, or unknown."""
        return self._parsed(RolloutStatus, self._send("POST", f"/rollouts/{_quoted(rollout)}/resume"))

    def target(self, target: str) -> TargetStatus | None:
        """Return what a target serves; None where nothing was ever released on it."""
        answer = self._send("GET", f"/targets/{_quoted(target)}", accept=(200, 404))
        return self._parsed(TargetStatus, answer) if answer.status == 200 else None

    def retire(self, target: str) -> None:
        """Take a target out of service, with its history; do nothing where it is not in service.

        Raises:
            TryAgainError: also where the retirement is still in progress after `RETIRE_SECONDS`.
        """
        answer = self._send("DELETE", f"/targets/{_quoted(target)}", accept=(200, 409), timeout=_RETIRE_TIMEOUT)
        if answer.status == 409:
            raise TryAgainError(str(_refusal(answer)["error"]))

    def state(self) -> ControllerState:
        """Return all targets, and the rollouts that have not ended."""
        return self._parsed(ControllerState, self._send("GET", "/state"))

    def _send(
        self,
        method: str,
        path: str,
        *,
        body: dict[str, Any] | None = None,
        accept: tuple[int, ...] = (200,),
        timeout: float = _TIMEOUT,
    ) -> urllib3.BaseHTTPResponse:
        headers = {"Authorization": f"Bearer {self._token()}"}
        try:
            with urllib3.PoolManager(retries=False, timeout=timeout) as pool:
                answer = pool.request(method, f"{self._url}{path}", json=body, headers=headers, redirect=False)
        except HTTPError as error:
            raise TryAgainError(
                f"the canary controller does not answer at {self._url} ({error.__cause__ or error}): {self._remedy()}"
            ) from None
        if answer.status in accept:
            return answer
        if answer.status == 401:
            raise ConfigurationError(
                f"the canary controller at {self._url} does not take the token in {self._token_file}: another "
                "controller listens there, or it was started with an older token; start it again"
            )
        reason = _refusal(answer)["error"]
        if answer.status >= 500:
            raise TryAgainError(f"the canary controller failed at {method} {path} ({reason}): see its log")
        raise ConfigurationError(f"the canary controller refused {method} {path}: {reason}")

    def _token(self) -> str:
        try:
            return self._token_file.read_text(encoding="ascii").strip()
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not a token"
            remedy = "`make up` makes it" if self._on_laptop() else "see that the secret or volume with it is mounted"
            raise TryAgainError(
                f"the canary controller's token {self._token_file} cannot be read ({reason}): {remedy}"
            ) from None

    def _parsed(self, model: type[M], answer: urllib3.BaseHTTPResponse) -> M:
        try:
            return model.model_validate_json(answer.data)
        except ValidationError as error:
            raise ConfigurationError(
                f"what answers at {self._url} is not this Anemone's canary controller "
                f"({first_problem(error, 'body')}): start serving and Airflow from the same version"
            ) from None

    def _remedy(self) -> str:
        return "`make up` starts it" if self._on_laptop() else "see that its pod or container runs"

    def _on_laptop(self) -> bool:
        """Return whether `make up` starts the controller, as opposed to a pod or a container.

        Then it is a process of this machine and the command that fails has a Makefile beside it, as no image has.
        """
        host = urlsplit(self._url).hostname or ""
        try:
            local = host == "localhost" or ip_address(host).is_loopback
        except ValueError:
            return False
        laptop = os.environ.get("ANEMONE_PLATFORM") in (None, "", "laptop") and (PROJECT / "Makefile").is_file()
        return local and laptop and "KUBERNETES_SERVICE_HOST" not in os.environ


def new_notes(status: RolloutStatus, logged: int) -> list[str]:
    """Return the notes of a rollout after the first `logged`, a `key=value` line each."""
    return [
        format_event("note", {"at": f"{note.time:%H:%M:%S}", "state": note.state, "message": note.message})
        for note in status.notes[logged:]
    ]


def _quoted(name: str) -> str:
    return quote(name, safe="")


def _refusal(answer: urllib3.BaseHTTPResponse) -> dict[str, Any]:
    """Return the controller's own message, {"error", …}, or one made from the answer of something else."""
    try:
        body = json.loads(answer.data)
    except ValueError:
        body = None
    if isinstance(body, dict) and "error" in body:
        return body
    return {"error": f"status {answer.status}: {answer.data[:300].decode(errors='replace')}"}
