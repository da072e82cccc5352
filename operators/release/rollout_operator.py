"""A release or a rollback as a task: the canary controller does it, Airflow waits and reads the verdict."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, NoReturn

from airflow.sdk import BaseOperator
from airflow.sdk.exceptions import AirflowException
from pydantic import ValidationError

from include.artifacts.naming import digest
from include.errors import ArtifactError, ConfigurationError, TryAgainError, first_problem
from include.events import format_event
from include.platforms import current_platform
from include.release.controller import ControllerClient, OtherRolloutError, new_notes
from include.release.rollouts import Kind, Outcome, RolloutRequest, RolloutStatus
from operators.errors import DecisionError, record_failure
from operators.links import EVIDENCE_KEY, EvidenceLink
from operators.store import store_of

if TYPE_CHECKING:
    from airflow.sdk import Context

_KEPT = "rollout"
"""Key in the task's state, which outlives its tries: {"number": of rollouts that it asked for, "max_tries": Airflow's
when the last one was asked for, "stopped": whether that one was told to go back}."""

_BRIEF_SECONDS = 5.0
"""A first release and a rollback are over by then, and deferring them would take about as long."""

_POLL_SECONDS = 0.25

_NOTE_SECONDS = 1.0
"""Airflow kills a task 5 s after it was asked to stop, and its rollout has to be taken back within them."""

_REMEDY: dict[Outcome | None, str] = {
    "rolled_back": "Mend the data set or the recipe and run customize, or clear this task to try the same once more.",
    "inconclusive": "Let more requests come, or ask for less evidence with the overrides canary.min_requests and "
    "canary.max_seconds, then clear this task.",
    "refused": "Nothing was loaded, and the traffic is as it was.",
}
"""What the person who finds the red task can do."""


class CanaryRolloutOperator(BaseOperator):
    """Bring a release to all of a target's traffic, or fail with the reasons why it went back.

    Returns {"outcome", "model", "version", "release": its name inside Triton, "evidence": artifact URI}.

    The controller carries the rollout out, whatever becomes of Airflow; this task starts it, defers, and reads the
    verdict. A retry after a crash joins the rollout of the try before. A person who clears the task or marks it
    failed takes the rollout back, and a cleared task starts another one. Airflow does not say which of the two it was,
    but clearing gives a task new tries, and a retry does not: its `max_tries` tells them apart. Where another rollout
    goes on at the target, the task waits until that has ended.

    Args:
        kind: `release` leads the canary through its policy's steps; `rollback` shifts all traffic at once.
        target: the public model name, which is also the registered model's.
        version: of the registered model. A rollback goes to a version that was live before, if empty to the last one.
        engine: URI of what the job `engine` made of that version; only for a release.
        expected_champion: the version that the candidate was compared with, None with none; only for a release.
        policy: the `canary` section of a resolved recipe; None: the defaults.
        drill: rehearse a bad release (see `include.release.rollouts.RolloutRequest`).
    """

    template_fields: Sequence[str] = ("target", "version", "engine", "expected_champion", "policy", "drill")
    template_fields_renderers = {"policy": "json"}
    operator_extra_links = (EvidenceLink(),)
    ui_color = "#e8f4ea"

    def __init__(
        self,
        *,
        kind: Kind,
        target: str,
        version: str | None = None,
        engine: str | None = None,
        expected_champion: str | None = None,
        policy: Mapping[str, Any] | None = None,
        drill: str = "none",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.kind = kind
        self.target = target
        self.version = version
        self.engine = engine
        self.expected_champion = expected_champion
        self.policy = policy
        self.drill = drill
        self._rollout: str | None = None
        self._state: Any = None

    @cached_property
    def controller(self) -> ControllerClient:
        serving = current_platform().serving
        return ControllerClient(serving.controller_url, serving.token_file)

    @record_failure
    def execute(self, context: Context) -> dict[str, Any]:
        try:
            status = self._begun(context)
        except OtherRolloutError as other:
            self._wait_for(other)
        told = self._tell(status, 0)
        give_up = time.monotonic() + _BRIEF_SECONDS
        while not status.ended:
            if time.monotonic() > give_up:
                self._wait(status.id, told)
            time.sleep(_POLL_SECONDS)
            try:
                status = self._known(status.id)
            except TryAgainError as error:
                self.log.warning("%s", error)
                self._wait(status.id, told)
            told = self._tell(status, told)
        return self._conclude(context, status)

    @record_failure
    def resume(self, context: Context, event: Mapping[str, Any]) -> dict[str, Any]:
        """Continue after the deferral."""
        if event["trouble"] is not None:
            raise AirflowException(
                f"{event['trouble']}; rollout {event['rollout']} is the controller's to end, and the next try of this "
                "task looks for it"
            )
        status = self._known(event["rollout"])
        self._tell(status, event["told"])
        return self._conclude(context, status)

    def ask_again(self, context: Context, event: Mapping[str, Any]) -> dict[str, Any]:
        """Continue after the deferral for another task's rollout, however that has ended."""
        return self.execute(context)

    def on_kill(self) -> None:
        """Take the rollout back: the task was stopped before it deferred, and nobody would see how it ends."""
        if self._rollout is None:
            return
        # In a thread: this is a signal handler, and may have interrupted a talk with the supervisor, which lets nobody
        # else speak until it is over.
        note = threading.Thread(target=self._note_stop, daemon=True)
        note.start()
        note.join(_NOTE_SECONDS)
        refusal = self.controller.abort(self._rollout, "its task was stopped")
        if refusal is not None:
            self.log.warning("%s", refusal)

    def _note_stop(self) -> None:
        self._state.set(_KEPT, {**self._state.get(_KEPT), "stopped": True})

    def _wait_for(self, other: OtherRolloutError) -> NoReturn:
        from operators.release.trigger import RolloutTrigger

        self.log.info("%s", other)
        self.defer(trigger=RolloutTrigger(rollout=other.rollout, own=False), method_name="ask_again")

    def _wait(self, rollout: str, told: int) -> NoReturn:
        from operators.release.trigger import RolloutTrigger

        self.log.info(
            "waiting for rollout %s, which the canary controller carries out whether Airflow runs or not; to take it "
            "back, mark this task as failed",
            rollout,
        )
        self.defer(trigger=RolloutTrigger(rollout=rollout, told=told), method_name="resume")

    def _tell(self, status: RolloutStatus, told: int) -> int:
        """Log what the log does not have yet; returns how many notes it has now."""
        for line in new_notes(status, told):
            self.log.info("%s", line)
        return max(told, len(status.notes))

    def _begun(self, context: Context) -> RolloutStatus:
        """The rollout that this try waits for: started, or joined where the try before had started it."""
        self._state = context["task_state_store"]
        max_tries = context["ti"].max_tries
        kept = self._state.get(_KEPT) or {"number": 1, "max_tries": max_tries, "stopped": False}
        number = kept["number"]
        if kept["stopped"] or kept["max_tries"] != max_tries:
            former = _rollout_id(context, number)
            status = self.controller.status(former)
            if status is not None and self._stands(status):
                return status
            if status is not None and not status.ended:
                self.log.info("the task was cleared or stopped while rollout %s went on: it goes back first", former)
                self.controller.abort(former, "its task was cleared or stopped")
            number += 1
        request = self._request(_rollout_id(context, number))
        self._state.set(_KEPT, {"number": number, "max_tries": max_tries, "stopped": False})
        self._rollout = request.id
        status = self.controller.start(request)
        self.log.info(
            format_event(
                self.kind, {"rollout": status.id, "target": status.target, "state": status.state, "drill": self.drill}
            )
        )
        return status

    def _stands(self, status: RolloutStatus) -> bool:
        """Whether what the rollout promoted is what is live."""
        if status.outcome != "promoted":
            return False
        target = self.controller.target(status.target)
        return target is not None and target.champion is not None and target.champion.name == status.name

    def _request(self, rollout: str) -> RolloutRequest:
        draft: dict[str, Any] = {"id": rollout, "kind": self.kind, "target": self.target, "drill": self.drill}
        if self.policy is not None:
            draft["policy"] = self.policy
        if self.kind == "release":
            draft["expected_champion"] = self.expected_champion
            draft["release"] = {"model": self.target, "version": self.version, "engine": _pinned(self.engine)}
        else:
            draft["version"] = self.version or None
        try:
            return RolloutRequest.model_validate(draft)
        except ValidationError as error:
            problem = first_problem(error, whole=self.kind)
            raise ConfigurationError(f"this {self.kind} cannot be asked for: {problem}") from None

    def _known(self, rollout: str) -> RolloutStatus:
        status = self.controller.status(rollout)
        if status is None:
            raise TryAgainError(
                f"the canary controller does not know rollout {rollout} any more, so its state was lost: the next try "
                "starts it anew"
            )
        return status

    def _conclude(self, context: Context, status: RolloutStatus) -> dict[str, Any]:
        if status.figures:
            self.log.info(format_event("figures", status.figures))
        if status.evidence:
            context["ti"].xcom_push(key=EVIDENCE_KEY, value=status.evidence)
        live = status.champion.release.version if status.champion else None
        verdict = {"outcome": status.outcome, "live": live, "restarts": status.restarts, "evidence": status.evidence}
        self.log.info(format_event("verdict", verdict))
        if status.outcome == "promoted":
            return {
                "outcome": status.outcome,
                "model": status.target,
                "version": live,
                "release": status.name,
                "evidence": status.evidence,
            }
        for reason in status.reasons:
            self.log.error("%s", reason)
        outcome = str(status.outcome).replace("_", " ")
        drill = f" (drill: {self.drill})" if self.drill != "none" else ""
        now = f"Version {live} answers {status.target}." if live else f"Nothing is live on {status.target}."
        rehearsed = self.drill != "none" and status.outcome == "rolled_back"
        remedy = "It was a drill: nothing is to be mended." if rehearsed else _REMEDY.get(status.outcome, "")
        looks = f" {status.evidence} holds every look." if status.evidence else ""
        message = f"{outcome}{drill}: {'; '.join(status.reasons)}. {now} {remedy}{looks}"
        raise DecisionError(message, event=status.outcome or "run_failed")


def _rollout_id(context: Context, number: int) -> str:
    """The same for every try of one task; `number` counts the rollouts that it asked for."""
    ti = context["ti"]
    place = [ti.dag_id, context["run_id"], ti.task_id, ti.map_index]
    return f"{ti.dag_id[:60]}.{ti.task_id[:60]}-{digest(place)[:12]}.{number}"


def _pinned(engine: str | None) -> dict[str, str]:
    if engine is None:
        raise ConfigurationError("a release needs an engine: this task was given none")
    store, name = store_of(engine)
    manifest = store.manifest(name)
    if manifest is None:
        raise ArtifactError(f"{engine} does not exist: clear the task that makes it, and those after it")
    return {"uri": engine, "digest": manifest.content_digest}
