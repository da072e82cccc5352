"""Jobs that train on several nodes of a Kubernetes cluster; any other is one pod."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from airflow.sdk.exceptions import AirflowException
from kubernetes.client.exceptions import ApiException
from urllib3.exceptions import HTTPError

from include.errors import TryAgainError
from include.specs import spec_class
from operators.job_task import as_airflow_errors, plan_job, reused
from operators.plan import JobFailedError
from operators.pod_spec import SPEC_ANNOTATION
from operators.pods import PodJobOperator, api_answers
from operators.sentences import keep_sentence
from operators.training_trigger import TrainingTrigger, first_event
from operators.trainings import FORMS, SERVICE, TRAINING, Form, Kind
from operators.verdicts import OVERDUE_SECONDS, ended_by_cluster, exit_of, gone, refused

if TYPE_CHECKING:
    from airflow.sdk import Context

    from include.artifacts.manifest import Manifest

_PAUSE_SECONDS = 2.0
_LAST_LINES = 40
"""Of the log of each pod that failed."""

_STOPPED = 143


class DistributedJobOperator(PodJobOperator):
    """Run one job, on as many nodes as its configuration has (`nodes`); one node is a `PodJobOperator`'s pod.

    Several are one training (`operators.trainings`), in the form that the platform names. A task has one at a time: its
    name follows from the task. One that a crash has left is adopted; one that is being deleted is waited for. Node 0's
    log is followed; of every pod that failed the last lines are shown. Success is that all end well and a manifest that
    verifies. What one node ends with, the job makes known to all; the first that says why is the verdict.

    All nodes or none: where one finds no place in the platform's `schedule_timeout_seconds`, the others are let go.
    """

    @keep_sentence
    def execute(self, context: Context) -> str | None:
        if self.section is None or self._nodes == 1:
            return super().execute(context)
        with as_airflow_errors():
            job = self.section["job"]
            self._plan = plan_job(self, context, self.store, image=self.cluster.image(job, spec_class(job).environment))
            if manifest := reused(self, self._plan):
                return self._made(context, self._plan, manifest)
            self._spec_uri = self._plan.write_spec()
            name = self.pod_name(context)
            with api_answers(f"make training {name}"):
                self._require(name, self._form.pod(name, self._template(context)))
            trigger = self._trigger(name)
            if self.deferrable:
                self.defer(trigger=trigger, method_name="training_ended", timeout=self.execution_timeout)
            return self._conclude_training(context, asyncio.run(first_event(trigger)))

    @keep_sentence
    def training_ended(self, context: Context, event: dict[str, Any]) -> str:
        """Where the task goes on once the trigger has fired."""
        with as_airflow_errors():
            self._take(event["spec"])
            return self._conclude_training(context, event)

    def defer(self, *, trigger: Any, **kwargs: Any) -> Any:
        if not isinstance(trigger, TrainingTrigger):
            return super().defer(trigger=trigger, **kwargs)
        # Past PodJobOperator's, which takes every trigger for a pod's.
        return super(PodJobOperator, self).defer(trigger=trigger, **kwargs)

    def on_kill(self) -> None:
        """Delete what runs for this task: its pods save, and end."""
        if self._training is None:
            super().on_kill()
            return
        self._killed = True
        with suppress(ApiException, HTTPError):
            self._delete_object(self._form.kind, self._training)

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        if self.section is not None and self._nodes > 1:
            self._training = self.pod_name(context)
        return super().resume_execution(next_method, next_kwargs, context)

    _training: str | None = None
    """Name of the training that runs for this task."""

    @property
    def _nodes(self) -> int:
        assert self.section is not None
        return int(self.section["config"].get("nodes", 1))

    @property
    def _form(self) -> Form:
        return FORMS[self.cluster.training]

    def _template(self, context: Context) -> dict[str, Any]:
        pod = self.build_pod_request_obj(context)
        return self.client.api_client.sanitize_for_serialization(pod)

    def _trigger(self, name: str) -> TrainingTrigger:
        assert self._spec_uri is not None
        cluster = self.cluster
        return TrainingTrigger(
            name=name,
            namespace=self.namespace,
            form=cluster.training,
            nodes=self._nodes,
            spec=self._spec_uri,
            connection=self.kubernetes_conn_id,
            in_cluster=self.in_cluster,
            since=datetime.now(UTC).isoformat(),
            poll_seconds=self.poll_interval,
            schedule_timeout_seconds=self.schedule_timeout_seconds,
            startup_timeout_seconds=self.startup_timeout_seconds,
            unreachable_seconds=cluster.unreachable_seconds,
        )

    def _require(self, name: str, template: dict[str, Any]) -> None:
        """The task's one training: adopted where a crash has left it, made where there is none."""
        # Known before it exists, so that on_kill deletes it whenever it comes.
        self._training = name
        form, until = self._form, None
        while not self._killed:
            found = self._read_object(form.kind, name)
            if found is None:
                if self._begin(form, name, template):
                    return
                continue
            if found["metadata"].get("deletionTimestamp") is None:
                if self._adopts_training(form, found):
                    self.log.info("adopted training %s, which an earlier try has left", name)
                    self._take(found["metadata"]["annotations"][SPEC_ANNOTATION])
                    # What made it may have died before it made the rest.
                    self._make_rest(form, name, template, found)
                    return
                self.log.info("training %s of an earlier try makes room for this one", name)
                self._delete_object(form.kind, name)
            elif until is None:
                self.log.info("training %s is being deleted: waiting for its pods to save and end", name)
            until = until or time.monotonic() + self.platform.grace_seconds + 2 * OVERDUE_SECONDS
            if time.monotonic() > until:
                raise JobFailedError(
                    f"training {name} of an earlier try is still being deleted after its grace: `kubectl get pods -l "
                    f"{TRAINING}={name}` shows which pod does not end; see to its node",
                    retryable=True,
                )
            time.sleep(_PAUSE_SECONDS)
        raise AirflowException(f"stopped on request before training {name} was needed")

    def _begin(self, form: Form, name: str, template: dict[str, Any]) -> bool:
        """Make the training and what belongs to it; False where another has just done so."""
        assert self._plan is not None
        for kind, other in form.before(name, template):
            self._make(kind, other)
        per_node = self._plan.spec.config.processes // self._nodes
        body = form.render(name, template, nodes=self._nodes, processes=per_node)
        try:
            training = self._create_object(form.kind, body)
        except ApiException as error:
            if error.status == 409 and self._read_object(form.kind, name) is not None:
                return False
            raise refused(error, f"make training {name}") from None
        try:
            self._make_rest(form, name, template, training)
        except BaseException:
            self.on_kill()
            raise
        self.log.info("training %s: %d nodes of %d processes (%s)", name, self._nodes, per_node, self.cluster.training)
        if self._killed:
            self.on_kill()
        return True

    def _make_rest(self, form: Form, name: str, template: dict[str, Any], training: Mapping[str, Any]) -> None:
        """Everything beside the training itself, which it owns, so that its deletion takes everything with it."""
        owner = {
            "apiVersion": training["apiVersion"],
            "kind": training["kind"],
            "name": name,
            "uid": training["metadata"]["uid"],
        }
        for kind, other in form.after(name, template):
            other["metadata"]["ownerReferences"] = [owner]
            self._make(kind, other)
        for kind, other in form.before(name, template):
            self._custom.patch_namespaced_custom_object(
                kind.group,
                kind.version,
                self.namespace,
                kind.plural,
                other["metadata"]["name"],
                {"metadata": {"ownerReferences": [owner]}},
            )

    def _make(self, kind: Kind, body: dict[str, Any]) -> None:
        """An object beside the training; one that an earlier training has left goes first."""
        name, until = body["metadata"]["name"], time.monotonic() + OVERDUE_SECONDS
        what = f"make {body['kind']} {name}"
        while True:
            try:
                self._create_object(kind, body)
                return
            except ApiException as error:
                if error.status != 409 or time.monotonic() > until:
                    raise refused(error, what) from None
            found = self._read_object(kind, name)
            owners = [owner["uid"] for owner in (found or {}).get("metadata", {}).get("ownerReferences", ())]
            if owners == [owner["uid"] for owner in body["metadata"].get("ownerReferences", ())] and owners:
                return
            self._delete_object(kind, name)
            time.sleep(_PAUSE_SECONDS)

    def _adopts_training(self, form: Form, found: Mapping[str, Any]) -> bool:
        """Whether a training that is there does, or did, what this try wants."""
        theirs = found["metadata"].get("annotations", {}).get(SPEC_ANNOTATION)
        if theirs is None or form.ended(found) == "failed":
            return False
        assert self._plan is not None
        try:
            return self._plan.stored(theirs, self.store).name == self._plan.name
        except TryAgainError:
            # What cannot be read any more is not what this try wants.
            return False

    def _conclude_training(self, context: Context, event: Mapping[str, Any]) -> str:
        assert self._plan is not None
        name = self._training = self.pod_name(context)
        ti, status = context["ti"], event["status"]
        # One that could not be watched goes on, and the next try adopts it; without one, nobody would look after it.
        stays = (status == "failed" and self.cluster.keep_failed_pods) or (
            status == "unreachable" and ti.try_number <= ti.max_tries
        )
        try:
            with api_answers(f"look at training {name}"):
                manifest = self._judge_training(name, event)
        finally:
            if not stays:
                with suppress(ApiException, HTTPError):
                    self._delete_object(self._form.kind, name)
        return self._made(context, self._plan, manifest)

    def _judge_training(self, name: str, event: Mapping[str, Any]) -> Manifest:
        assert self._plan is not None
        form = self._form
        pods = self.client.list_namespaced_pod(self.namespace, label_selector=f"{TRAINING}={name}").items
        failed = sorted((pod for pod in pods if not _ended_well(pod, form)), key=lambda pod: _weight(pod, form))
        if event["status"] in ("failed", "stuck"):
            for pod in failed:
                self._show_end(pod, form)
        match event["status"]:
            case "succeeded":
                return self._plan.conclude(0, None)
            case "gone":
                raise gone(name, event["fate"])
            case "stuck":
                raise JobFailedError(event["message"], retryable=event["retryable"])
            case "unreachable":
                raise JobFailedError(
                    f"training {name} could not be watched ({event['message']}): see to the Kubernetes API, and to "
                    "what Airflow may do there",
                    retryable=True,
                )
        for pod in failed:
            if found := ended_by_cluster(pod, form.container):
                raise found
            if ended := exit_of(pod, form.container):
                return self._plan.conclude(*ended)
        training = self._read_object(form.kind, name)
        raise JobFailedError(
            event["fate"]
            or f"training {name} failed ({form.reason(training) if training else 'it is gone'}), and none of its pods "
            "is there to say why: the next try goes on where this one has saved",
            retryable=True,
        )

    def _show_end(self, pod: Any, form: Form) -> None:
        """The last lines of a pod's log. Node 0's was followed; its last lines may have come too late for that."""
        ended = exit_of(pod, form.container)
        how = f"exit {ended[0]}" if ended else pod.status.phase
        self.log.error("the end of pod %s (%s, node %s):", pod.metadata.name, how, pod.spec.node_name)
        if ended is None:
            return
        with suppress(ApiException, HTTPError):
            # Unread, because the client makes of bytes what Python would print of them: b'…'.
            answer = self.client.read_namespaced_pod_log(
                pod.metadata.name,
                self.namespace,
                container=form.container,
                tail_lines=_LAST_LINES,
                _preload_content=False,
            )
            for line in answer.data.decode(errors="replace").splitlines():
                self.log.error("  %s", line)

    @property
    def _custom(self) -> Any:
        return self.hook.custom_object_client

    def _read_object(self, kind: Kind, name: str) -> dict[str, Any] | None:
        try:
            if kind == SERVICE:
                found = self.client.read_namespaced_service(name, self.namespace)
                return self.client.api_client.sanitize_for_serialization(found)
            return self._custom.get_namespaced_custom_object(
                kind.group, kind.version, self.namespace, kind.plural, name
            )
        except ApiException as error:
            if error.status != 404:
                raise
            return None

    def _create_object(self, kind: Kind, body: dict[str, Any]) -> dict[str, Any]:
        if kind == SERVICE:
            made = self.client.create_namespaced_service(self.namespace, body)
            return self.client.api_client.sanitize_for_serialization(made)
        return self._custom.create_namespaced_custom_object(kind.group, kind.version, self.namespace, kind.plural, body)

    def _delete_object(self, kind: Kind, name: str) -> None:
        try:
            if kind == SERVICE:
                self.client.delete_namespaced_service(name, self.namespace)
            else:
                self._custom.delete_namespaced_custom_object(
                    kind.group, kind.version, self.namespace, kind.plural, name, propagation_policy="Foreground"
                )
        except ApiException as error:
            if error.status != 404:
                raise


def _ended_well(pod: Any, form: Form) -> bool:
    ended = exit_of(pod, form.container)
    return ended is not None and ended[0] == 0


def _weight(pod: Any, form: Form) -> tuple[int, str]:
    """Whose end says why: one that ended by itself, then one that the cluster took; the rest only followed."""
    ended = exit_of(pod, form.container)
    taken = any(c.type == "DisruptionTarget" and c.status == "True" for c in pod.status.conditions or ())
    when = next(
        (
            str(found.state.terminated.finished_at)
            for found in pod.status.container_statuses or ()
            if found.name == form.container and found.state and found.state.terminated
        ),
        "9",
    )
    if taken:
        return 1, when
    if ended is None or ended[0] == _STOPPED:
        return 2, when
    return 0, when
