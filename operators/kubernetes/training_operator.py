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

from include.errors import ExitCode
from include.job_plan import JobFailedError
from operators.errors import record_failure
from operators.kubernetes.pod_failures import OVERDUE_SECONDS, ended_by_cluster, exit_of, failed_first, followed, gone
from operators.kubernetes.pod_logs import LOG_PLACE
from operators.kubernetes.pod_operator import PodJobOperator, api_answers
from operators.kubernetes.pod_spec import SPEC_ANNOTATION
from operators.kubernetes.training_objects import TrainingObjects
from operators.kubernetes.training_trigger import TrainingTrigger, first_event
from operators.kubernetes.workloads import FORMS, TRAINING, Form

if TYPE_CHECKING:
    from airflow.sdk import Context

    from include.artifacts.manifest import Manifest

_PAUSE_SECONDS = 2.0
_CONSEQUENCES = {ExitCode.TRY_AGAIN, ExitCode.KILLED, ExitCode.STOPPED}
"""What the pods of a training also end with where another pod of it was lost."""

_LAST_LINES = 40
"""Of the log of each pod that failed."""


class DistributedJobOperator(PodJobOperator):
    """Run one job, on as many nodes as its configuration has (`nodes`); one node is a `PodJobOperator`'s pod.

    Several are one training (`operators.kubernetes.workloads`), in the form that the platform names. A task has one at
    a time: its name follows from the task. One that a crash has left is adopted; one that is being deleted is waited
    for. Node 0's log is followed; of every pod that failed the last lines are shown. Success is that all end well and a
    manifest that verifies. What one node ends with, the job makes known to all; the first that says why is the verdict.

    All nodes or none: where one finds no place in the platform's `schedule_timeout_seconds`, the others are let go.
    """

    @record_failure
    def execute(self, context: Context) -> str | None:
        if self.section is None or self._nodes == 1:
            return super().execute(context)
        if manifest := self._reuse(context):
            return self._made(context, manifest)
        name = self.pod_name(context)
        with api_answers(f"make training {name}"):
            template = self._form.pod(name, self._template(context))
            with self.looked_after(context):
                training = self._require(name, template)
        trigger = self._trigger(training)
        if self.deferrable:
            context["ti"].xcom_push(key=LOG_PLACE, value={})
            self.defer(trigger=trigger, method_name="training_ended", timeout=self.execution_timeout)
        return self._conclude_training(context, asyncio.run(first_event(trigger)))

    @record_failure
    def training_ended(self, context: Context, event: dict[str, Any]) -> str:
        """Where the task goes on once the trigger has fired."""
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
        try:
            self._training.delete()
        except (ApiException, HTTPError) as error:
            self.log.error(
                "training %s was not deleted (%s) and goes on, if it is there: `kubectl --namespace %s delete %s %s`",
                *(self._training.name, error, self.namespace, self._form.kind.plural, self._training.name),
            )

    def _own(self, context: Context) -> None:
        if self.section is None or self._nodes == 1:
            super()._own(context)
        else:
            self._training = self._objects(self.pod_name(context))

    def _tidy_up(self, context: Context) -> None:
        super()._tidy_up(context)
        if self._nodes > 1 and context["ti"].try_number > 1:
            with suppress(ApiException, HTTPError):
                self._objects(self.pod_name(context)).delete()

    _training: TrainingObjects | None = None
    """What runs for this task."""

    @property
    def _nodes(self) -> int:
        assert self.section is not None
        return int(self.section["config"].get("nodes", 1))

    @property
    def _form(self) -> Form:
        return FORMS[self.cluster.training]

    def _objects(self, name: str, uid: str | None = None) -> TrainingObjects:
        return TrainingObjects(self.hook, self.namespace, self._form, name, uid)

    def _template(self, context: Context) -> dict[str, Any]:
        pod = self.build_pod_request_obj(context)
        return self.client.api_client.sanitize_for_serialization(pod)

    def _trigger(self, training: TrainingObjects) -> TrainingTrigger:
        assert self._spec_uri is not None
        cluster = self.cluster
        return TrainingTrigger(
            name=training.name,
            uid=training.uid,
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

    def _require(self, name: str, template: dict[str, Any]) -> TrainingObjects:
        """The task's one training: adopted where a crash has left it, made where there is none."""
        # Known before it exists, so that on_kill deletes it whenever it comes.
        training = self._training = self._objects(name)
        until = None
        while not self._killed:
            found = training.find()
            training.uid = found["metadata"]["uid"] if found else None
            if found is None:
                if self._begin(training, template):
                    return training
                continue
            if found["metadata"].get("deletionTimestamp") is None:
                if self._adopts_training(found):
                    self.log.info("adopted training %s, which an earlier try has left", name)
                    self._take(found["metadata"]["annotations"][SPEC_ANNOTATION])
                    # What made it may have died before it made the rest.
                    training.complete(found, template)
                    return training
                self.log.info("training %s of an earlier try makes room for this one", name)
                training.delete()
            elif until is None:
                self.log.info("training %s is being deleted: waiting for its pods to save and end", name)
            grace = template["spec"].get("terminationGracePeriodSeconds", self.platform.grace_seconds)
            until = until or time.monotonic() + grace + 2 * OVERDUE_SECONDS
            if time.monotonic() > until:
                raise JobFailedError(
                    f"training {name} of an earlier try is still being deleted after its grace: `kubectl get pods -l "
                    f"{TRAINING}={name}` shows which pod does not end; see to its node",
                    retryable=True,
                )
            time.sleep(_PAUSE_SECONDS)
        raise AirflowException(f"stopped on request before training {name} was needed")

    def _begin(self, training: TrainingObjects, template: dict[str, Any]) -> bool:
        """Make the training; False where another has just done so."""
        assert self._plan is not None
        nodes, processes = self._nodes, self._plan.spec.config.processes // self._nodes
        if not training.make(template, nodes=nodes, processes=processes):
            return False
        self.log.info("training %s: %d nodes of %d processes (%s)", training.name, nodes, processes, self._form.name)
        if self._killed:
            self.on_kill()
        return True

    def _adopts_training(self, found: Mapping[str, Any]) -> bool:
        """Whether a training that is there does, or did, what this try wants."""
        annotations = found["metadata"].get("annotations")
        return self._form.ended(found) != "failed" and self._works_on_ours(annotations)

    def _conclude_training(self, context: Context, event: Mapping[str, Any]) -> str:
        name = self.pod_name(context)
        training = self._training = self._objects(name, event["uid"])
        ti, status = context["ti"], event["status"]
        # One that could not be watched goes on, and the next try adopts it; without one, nobody would look after it.
        stays = (status == "failed" and self.cluster.keep_failed_pods) or (
            status == "unreachable" and ti.try_number <= ti.max_tries
        )
        try:
            with api_answers(f"look at training {name}"):
                manifest = self._judge_training(training, event)
        finally:
            if not stays:
                with suppress(ApiException, HTTPError):
                    training.delete()
        return self._made(context, manifest)

    def _judge_training(self, training: TrainingObjects, event: Mapping[str, Any]) -> Manifest:
        assert self._plan is not None
        form, name = training.form, training.name
        pods = self.client.list_namespaced_pod(self.namespace, label_selector=f"{TRAINING}={name}").items
        failed = failed_first(pods, form.container)
        # A pod that says itself what another try cannot change; one of those that another has left tells only that.
        cause = exit_of(failed[0], form.container) if failed else None
        told = cause is not None and cause[0] not in _CONSEQUENCES
        if event["status"] in ("failed", "stuck"):
            for pod in failed:
                self._show_end(pod, form)
        match event["status"]:
            case "succeeded":
                return self._plan.conclude(0, None)
            case "gone":
                raise gone(name, event["fate"])
            case "stuck" if not told:
                raise JobFailedError(event["message"], retryable=event["retryable"])
            case "unreachable":
                raise JobFailedError(
                    f"training {name} could not be watched ({event['message']}): see to the Kubernetes API, and to "
                    "what Airflow may do there",
                    retryable=True,
                )
        if event["fate"] and (not failed or followed(failed[0], form.container)):
            # The one that was taken away is gone, or ended like those that only followed it.
            raise JobFailedError(event["fate"], retryable=event["retryable"])
        for pod in failed:
            if found := ended_by_cluster(pod, form.container):
                raise found
            if ended := exit_of(pod, form.container):
                return self._plan.conclude(*ended)
        found = training.find()
        raise JobFailedError(
            f"training {name} failed ({form.reason(found) if found else 'it is gone'}), and none of its pods is "
            "there to say why: the next try goes on where this one has saved",
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
