"""A release or a rollback as a task: the canary controller carries it out, Airflow waits for the outcome."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

from airflow.sdk import BaseOperator
from airflow.sdk.exceptions import AirflowException
from pydantic import ValidationError

from include.artifacts.naming import digest
from include.errors import ArtifactError, ConfigurationError, TryAgainError, first_problem
from include.events import format_event
from include.platforms import current_platform
from include.release.controller_client import ControllerClient, OtherRolloutError, new_notes
from include.release.rollouts import Kind, Outcome, RolloutRequest, RolloutStatus
from operators.errors import DecisionError, record_failure
from operators.links import EVIDENCE_KEY, EVIDENCE_PENDING_KEY, EvidenceLink
from operators.literals import LiteralFields
from operators.store import store_of

if TYPE_CHECKING:
    from airflow.sdk import Context

_STATE_KEY = "rollout"
"""In the task's state, which all its tries share: {"number": of rollouts that it has requested, "max_tries": Airflow's
at the last request, "stopped": whether the last one was aborted because the task was stopped}."""

_DEFER_AFTER_SECONDS = 5.0
"""A first release and a rollback have ended by then, and deferring them would take about as long."""

_POLL_SECONDS = 0.25

_STORE_SECONDS = 1.0
"""For storing that the task was stopped: Airflow kills it 5 s later, and its rollout must be aborted before."""

_REMEDY: dict[Outcome | None, str] = {
    "rolled_back": "Correct the data set or the recipe and run customize, or clear this task to try again.",
    "inconclusive": "Clear this task once there are more requests, or run release of this version with a lower "
    "canary.min_requests or a higher canary.max_seconds among its overrides.",
    "refused": "Nothing was loaded, and the traffic has not changed.",
}
"""What the person who finds the red task can do."""


class CanaryRolloutOperator(LiteralFields, BaseOperator):
    """Bring a release to all of a target's traffic, or fail with the reasons why it went back.

    Returns {"outcome", "model", "version", "release": its name inside Triton, "evidence": artifact URI}. Where the
    store was away at the end, the controller commits that artifact later.

    The controller carries the rollout out, whatever happens to Airflow; this task starts it, defers, and reads the
    outcome. A retry after a crash joins the rollout of the try before. Clearing the task, or marking it failed, aborts
    the rollout, and a cleared task starts another one. Airflow does not say whether a try is a retry or follows a
    clear, but clearing raises the task's `max_tries`. Where another rollout is in progress at the target, the
    task waits until that has ended.

    Args:
        kind: `release` leads the canary through its policy's steps; `rollback` shifts all traffic at once.
        target: the public model name, which is also the registered model's.
        version: of the registered model. A rollback's must have been live before; empty means the last one.
        engine: URI of what the job `engine` made of that version; only for a release.
        expected_champion: the version that the candidate was compared with, if with any; only for a release.
        policy: the `canary` section of a resolved recipe; None: the defaults. Texts in it are no templates
            (`operators.literals`), a regular expression such as `quality.answer_format` above all.
        drill: rehearse a bad release (see `include.release.rollouts.RolloutRequest`).
    """

    template_fields: Sequence[str] = ("target", "version", "engine", "expected_champion", "policy", "drill")
    literal_fields: ClassVar[frozenset[str]] = frozenset({"policy"})
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
            status = self._start_or_join(context)
        except OtherRolloutError as other:
            self._defer_until_other_ends(other)
        notes_logged = self._log_notes(status, 0)
        defer_at = time.monotonic() + _DEFER_AFTER_SECONDS
        while not status.ended:
            if time.monotonic() > defer_at:
                self._defer(status.id, notes_logged)
            time.sleep(_POLL_SECONDS)
            try:
                status = self._status(status.id)
            except TryAgainError as error:
                self.log.warning("%s", error)
                self._defer(status.id, notes_logged)
            notes_logged = self._log_notes(status, notes_logged)
        return self._conclude(context, status)

    @record_failure
    def resume(self, context: Context, event: Mapping[str, Any]) -> dict[str, Any]:
        """Resume after the trigger has fired. Version 0.1 called the keys `trouble` and `told`.

        Returns:
            What `execute` returns.

        Raises:
            AirflowException: the trigger could not follow the rollout, which goes on.
        """
        error = event["error"] if "error" in event else event["trouble"]
        if error is not None:
            raise AirflowException(
                f"{error}; the controller continues rollout {event['rollout']}, which the next try joins"
            )
        status = self._status(event["rollout"])
        self._log_notes(status, event["notes_logged"] if "notes_logged" in event else event["told"])
        return self._conclude(context, status)

    def ask_again(self, context: Context, event: Mapping[str, Any]) -> dict[str, Any]:
        """Try again after another task's rollout has ended, in whatever way."""
        return self.execute(context)

    def on_kill(self) -> None:
        """Abort the rollout: the task was stopped before it deferred, and nobody would read the outcome."""
        if self._rollout is None:
            return
        # In a thread: this is a signal handler, and may have interrupted a request to the supervisor, which serves no
        # other one until it is over.
        storing = threading.Thread(target=self._store_stop, daemon=True)
        storing.start()
        storing.join(_STORE_SECONDS)
        refusal = self.controller.abort(self._rollout, "its task was stopped")
        if refusal is not None:
            self.log.warning("%s", refusal)

    def _store_stop(self) -> None:
        self._state.set(_STATE_KEY, {**self._state.get(_STATE_KEY), "stopped": True})

    def _defer_until_other_ends(self, other: OtherRolloutError) -> NoReturn:
        from operators.release.trigger import RolloutTrigger

        self.log.info("%s", other)
        self.defer(trigger=RolloutTrigger(rollout=other.rollout, own=False), method_name="ask_again")

    def _defer(self, rollout: str, notes_logged: int) -> NoReturn:
        from operators.release.trigger import RolloutTrigger

        self.log.info(
            "waiting for rollout %s, which the canary controller carries out whether Airflow runs or not; to abort it, "
            "mark this task as failed",
            rollout,
        )
        self.defer(trigger=RolloutTrigger(rollout=rollout, notes_logged=notes_logged), method_name="resume")

    def _log_notes(self, status: RolloutStatus, notes_logged: int) -> int:
        """Log the notes after the first `notes_logged`. Return how many are in the log now."""
        for line in new_notes(status, notes_logged):
            self.log.info("%s", line)
        return max(notes_logged, len(status.notes))

    def _start_or_join(self, context: Context) -> RolloutStatus:
        """Return the rollout that this try waits for: a new one, or the one that the try before had started."""
        self._state = context["task_state_store"]
        max_tries = context["ti"].max_tries
        state = self._state.get(_STATE_KEY) or {"number": 1, "max_tries": max_tries, "stopped": False}
        number = state["number"]
        if state["stopped"] or state["max_tries"] != max_tries:
            former = _rollout_id(context, number)
            status = self.controller.status(former)
            if status is not None and self._is_live(status):
                return status
            if status is not None and not status.ended:
                self.log.info(
                    "the task was cleared or stopped before rollout %s had ended: it is aborted first", former
                )
                self.controller.abort(former, "its task was cleared or stopped")
            number += 1
        request = self._request(_rollout_id(context, number))
        self._state.set(_STATE_KEY, {"number": number, "max_tries": max_tries, "stopped": False})
        self._rollout = request.id
        status = self.controller.start(request)
        self.log.info(
            format_event(
                self.kind, {"rollout": status.id, "target": status.target, "state": status.state, "drill": self.drill}
            )
        )
        return status

    def _is_live(self, status: RolloutStatus) -> bool:
        """Return whether the release that the rollout promoted is the champion now."""
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
            draft["release"] = {"model": self.target, "version": self.version, "engine": _pin(self.engine)}
        else:
            draft["version"] = self.version or None
        try:
            return RolloutRequest.model_validate(draft)
        except ValidationError as error:
            problem = first_problem(error, whole=self.kind)
            raise ConfigurationError(f"this {self.kind} cannot be requested: {problem}") from None

    def _status(self, rollout: str) -> RolloutStatus:
        """Return the rollout's status. Raises TryAgainError where the controller has lost it."""
        status = self.controller.status(rollout)
        if status is None:
            raise TryAgainError(
                f"the canary controller does not know rollout {rollout} any more, so its state was lost: the next try "
                "starts it again"
            )
        return status

    def _conclude(self, context: Context, status: RolloutStatus) -> dict[str, Any]:
        """Return what the task returns of a promoted rollout. Raises DecisionError for any other outcome."""
        if status.figures:
            self.log.info(format_event("figures", status.figures))
        evidence = status.evidence or status.evidence_pending
        if evidence:
            context["ti"].xcom_push(key=EVIDENCE_KEY, value=evidence)
        if status.evidence_pending:
            context["ti"].xcom_push(key=EVIDENCE_PENDING_KEY, value=evidence)
            self.log.warning(
                "the evidence of rollout %s is not in the store yet: the canary controller keeps it, and stores it at "
                "%s once the store takes it",
                status.id,
                evidence,
            )
        live = status.champion.release.version if status.champion else None
        verdict = {"outcome": status.outcome, "live": live, "restarts": status.restarts, "evidence": evidence}
        self.log.info(format_event("verdict", verdict))
        if status.outcome == "promoted":
            return {
                "outcome": status.outcome,
                "model": status.target,
                "version": live,
                "release": status.name,
                "evidence": evidence,
            }
        for reason in status.reasons:
            self.log.error("%s", reason)
        outcome = str(status.outcome).replace("_", " ")
        drill = f" (drill: {self.drill})" if self.drill != "none" else ""
        now = f"Version {live} answers {status.target}." if live else f"Nothing is live on {status.target}."
        drilled = self.drill != "none" and status.outcome == "rolled_back"
        remedy = "It was a drill: there is nothing to correct." if drilled else _REMEDY.get(status.outcome, "")
        message = f"{outcome}{drill}: {'; '.join(status.reasons)}. {now} {remedy}{_where_evidence_is(status)}"
        raise DecisionError(message, event=status.outcome or "run_failed")


def _where_evidence_is(status: RolloutStatus) -> str:
    if status.evidence:
        return f" {status.evidence} holds every analysis run."
    if status.evidence_pending:
        return f" {status.evidence_pending} will hold every analysis run, once the store takes them."
    return ""


def _rollout_id(context: Context, number: int) -> str:
    """Return the same id in every try of one task; `number` counts the rollouts that it has requested."""
    ti = context["ti"]
    task = [ti.dag_id, context["run_id"], ti.task_id, ti.map_index]
    return f"{ti.dag_id[:60]}.{ti.task_id[:60]}-{digest(task)[:12]}.{number}"


def _pin(engine: str | None) -> dict[str, str]:
    """Return the engine's URI and content digest."""
    if engine is None:
        raise ConfigurationError("a release needs an engine: this task was given none")
    store, name = store_of(engine)
    manifest = store.manifest(name)
    if manifest is None:
        raise ArtifactError(f"{engine} does not exist: clear the task that makes it, and those after it")
    return {"uri": engine, "digest": manifest.content_digest}
