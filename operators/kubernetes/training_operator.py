"""Jobs on several nodes of a Kubernetes cluster; any other job is one pod."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, cast

from airflow.providers.cncf.kubernetes.hooks.kubernetes import KubernetesHook
from airflow.sdk.exceptions import AirflowException
from kubernetes.client.exceptions import ApiException
from urllib3.exceptions import HTTPError

from include.errors import ExitCode
from include.job_plan import JobFailedError
from operators.errors import record_failure
from operators.kubernetes.pod_failures import (
    OVERDUE_SECONDS,
    ended_by_cluster,
    exit_of,
    failed_first,
    is_consequence,
    pod_gone,
)
from operators.kubernetes.pod_logs import LOG_POSITION
from operators.kubernetes.pod_operator import PodJobOperator, kubernetes_errors
from operators.kubernetes.pod_spec import SPEC_ANNOTATION
from operators.kubernetes.pod_trigger import disruption_in
from operators.kubernetes.training_objects import TrainingObjects
from operators.kubernetes.training_trigger import TrainingTrigger, first_event
from operators.kubernetes.workloads import TRAINING, WORKLOADS, Workload

if TYPE_CHECKING:
    from airflow.sdk import Context

    from include.artifacts.manifest import Manifest

_PAUSE_SECONDS = 2.0
_CONSEQUENCES = {ExitCode.TRY_AGAIN, ExitCode.KILLED, ExitCode.STOPPED}
"""Exit codes of a training's pods that may be consequences of the loss of another one."""

_LAST_LINES = 40
"""Of the log of each pod that failed."""


class DistributedJobOperator(PodJobOperator):
    """Run one job, on as many nodes as its configuration has (`nodes`); one node is a `PodJobOperator`'s pod.

    Several nodes are one training, as the workload that the platform names (`operators.kubernetes.workloads`). A task
    has one training at a time: its name follows from the task. One that a crash has left is adopted; one that is being
    deleted is waited for. Node 0's log is followed; the last lines of every failed pod are logged. Success is that all
    pods end well, and a manifest that verifies. The job tells all nodes why one has failed; the first of them that says
    why decides the error.

    All nodes or none: where one is not scheduled within the platform's `schedule_timeout_seconds`, all are deleted.
    """

    @record_failure
    def execute(self, context: Context) -> str | None:
        if self.section is None or self._nodes == 1:
            return super().execute(context)
        if manifest := self._reuse(context):
            return self._push_artifact(context, manifest)
        name = self.pod_name(context)
        with kubernetes_errors(f"create training {name}"):
            template = self._workload.pod(name, self._template(context))
            with self.deleting_after_last_try(context):
                training = self._require_training(name, template)
        trigger = self._trigger(training)
        if self.deferrable:
            context["ti"].xcom_push(key=LOG_POSITION, value={})
            self.defer(trigger=trigger, method_name="training_ended", timeout=self.execution_timeout)
        return self._conclude_training(context, asyncio.run(first_event(trigger)))

    @record_failure
    def training_ended(self, context: Context, event: dict[str, Any]) -> str:
        """Resume after the trigger has fired."""
        self._load_plan(event["spec"])
        return self._conclude_training(context, event)

    def defer(self, *, trigger: Any, **kwargs: Any) -> Any:
        if not isinstance(trigger, TrainingTrigger):
            return super().defer(trigger=trigger, **kwargs)
        # Skips PodJobOperator's, which expects a pod's trigger.
        return super(PodJobOperator, self).defer(trigger=trigger, **kwargs)

    def on_kill(self) -> None:
        """Delete what runs for this task: its pods save and end."""
        if self._training is None:
            super().on_kill()
            return
        self._killed = True
        try:
            self._training.delete()
        except (ApiException, HTTPError) as error:
            self.log.error(
                "training %s was not deleted (%s) and still runs, if it exists: `kubectl --namespace %s delete %s %s`",
                *(self._training.name, error, self.namespace, self._workload.kind.plural, self._training.name),
            )

    def _know_own_objects(self, context: Context) -> None:
        if self.section is None or self._nodes == 1:
            super()._know_own_objects(context)
        else:
            self._training = self._objects(self.pod_name(context))

    def _delete_leftovers(self, context: Context) -> None:
        super()._delete_leftovers(context)
        if self._nodes > 1 and context["ti"].try_number > 1:
            with suppress(ApiException, HTTPError):
                self._objects(self.pod_name(context)).delete()

    _training: TrainingObjects | None = None
    """What runs for this task."""

    @property
    def _nodes(self) -> int:
        return int(self.stage_section.config.get("nodes", 1))

    @property
    def _workload(self) -> Workload:
        return WORKLOADS[self.cluster.training]

    def _objects(self, name: str, uid: str | None = None) -> TrainingObjects:
        # The provider types its hook by a protocol, and leaves open what PodJobOperator always sets.
        hook, namespace = cast(KubernetesHook, self.hook), cast(str, self.namespace)
        return TrainingObjects(hook, namespace, self._workload, name, uid)

    def _template(self, context: Context) -> dict[str, Any]:
        pod = self.build_pod_request_obj(context)
        return self.client.api_client.sanitize_for_serialization(pod)

    def _trigger(self, training: TrainingObjects) -> TrainingTrigger:
        assert self._spec_uri is not None and self.namespace is not None and self.kubernetes_conn_id is not None
        cluster = self.cluster
        return TrainingTrigger(
            name=training.name,
            uid=training.uid,
            namespace=self.namespace,
            workload=cluster.training,
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

    def _require_training(self, name: str, template: dict[str, Any]) -> TrainingObjects:
        """Return the task's one training: adopt the one that a crash has left, or create it."""
        # Set before it exists, so that on_kill deletes it whenever it is created.
        training = self._training = self._objects(name)
        until = None
        while not self._killed:
            found = training.find()
            training.uid = found["metadata"]["uid"] if found else None
            if found is None:
                if self._create_training(training, template):
                    return training
                continue
            if found["metadata"].get("deletionTimestamp") is None:
                if self._adopts_training(found):
                    self.log.info("adopted training %s, which an earlier try has left", name)
                    self._load_plan(found["metadata"]["annotations"][SPEC_ANNOTATION])
                    # The process that created it may have died before it created the other objects.
                    training.complete(found, template)
                    return training
                self.log.info("training %s of an earlier try is deleted before this one starts", name)
                training.delete()
            elif until is None:
                self.log.info("training %s is being deleted: waiting for its pods to save and end", name)
            grace = template["spec"].get("terminationGracePeriodSeconds", self.platform.grace_seconds)
            until = until or time.monotonic() + grace + 2 * OVERDUE_SECONDS
            if time.monotonic() > until:
                raise JobFailedError(
                    f"training {name} of an earlier try is still being deleted after its grace: `kubectl get pods -l "
                    f"{TRAINING}={name}` shows which pod does not end; check its node",
                    retryable=True,
                )
            time.sleep(_PAUSE_SECONDS)
        raise AirflowException(f"stopped on request before training {name} was needed")

    def _create_training(self, training: TrainingObjects, template: dict[str, Any]) -> bool:
        """Create the training. Return False where another process has just done so."""
        assert self._plan is not None
        nodes, processes = self._nodes, self._plan.spec.config.processes // self._nodes
        if not training.create(template, nodes=nodes, processes=processes):
            return False
        self.log.info(
            "training %s: %d nodes of %d processes (%s)", training.name, nodes, processes, self._workload.name
        )
        if self._killed:
            self.on_kill()
        return True

    def _adopts_training(self, found: Mapping[str, Any]) -> bool:
        """Return whether an existing training does, or did, what this try is to do."""
        annotations = found["metadata"].get("annotations")
        return self._workload.ended(found) != "failed" and self._makes_the_same(annotations)

    def _conclude_training(self, context: Context, event: Mapping[str, Any]) -> str:
        name = self.pod_name(context)
        training = self._training = self._objects(name, event["uid"])
        ti, status = context["ti"], event["status"]
        # One that could not be watched continues, and the next try adopts it; after the last try it is deleted.
        stays = (status == "failed" and self.cluster.keep_failed_pods) or (
            status == "unreachable" and ti.try_number <= ti.max_tries
        )
        try:
            with kubernetes_errors(f"read training {name}"):
                manifest = self._judge_training(training, event)
        finally:
            if not stays:
                with suppress(ApiException, HTTPError):
                    training.delete()
        return self._push_artifact(context, manifest)

    def _judge_training(self, training: TrainingObjects, event: Mapping[str, Any]) -> Manifest:
        """Return what the training made, or raise why it failed: from the event and the pods that are left."""
        assert self._plan is not None
        workload, name, disruption = training.workload, training.name, disruption_in(event)
        pods = self.client.list_namespaced_pod(self.namespace, label_selector=f"{TRAINING}={name}").items
        failed = failed_first(pods, workload.container)
        # Whether a pod says itself what another try cannot change, and not only that another pod has left it.
        cause = exit_of(failed[0], workload.container) if failed else None
        explained = cause is not None and cause[0] not in _CONSEQUENCES
        if event["status"] in ("failed", "stuck"):
            for pod in failed:
                self._log_end(pod, workload)
        match event["status"]:
            case "succeeded":
                return self._plan.conclude(0, None)
            case "gone":
                raise pod_gone(name, disruption)
            case "stuck" if not explained:
                raise JobFailedError(event["message"], retryable=event["retryable"])
            case "unreachable":
                raise JobFailedError(event["message"], retryable=True)
        if disruption and (not failed or is_consequence(failed[0], workload.container)):
            # The pod that was removed is gone, or ended like those for which that was the reason.
            raise JobFailedError(disruption, retryable=event["retryable"])
        for pod in failed:
            if failure := ended_by_cluster(pod, workload.container):
                raise failure
            if ended := exit_of(pod, workload.container):
                return self._plan.conclude(*ended)
        found = training.find()
        raise JobFailedError(
            f"training {name} failed ({workload.reason(found) if found else 'it is gone'}), and none of its pods is "
            "there to say why: the next try continues from what this one has saved",
            retryable=True,
        )

    def _log_end(self, pod: Any, workload: Workload) -> None:
        """Log the last lines of a pod, node 0's too: its last lines may have come too late for the trigger."""
        ended, phase = exit_of(pod, workload.container), pod.status.phase
        if ended is None and phase not in ("Succeeded", "Failed"):
            self.log.info("pod %s had not ended (%s, node %s)", pod.metadata.name, phase, pod.spec.node_name)
            return
        how = f"exit {ended[0]}" if ended else phase
        self.log.error("the end of pod %s (%s, node %s):", pod.metadata.name, how, pod.spec.node_name)
        if ended is None:
            return
        with suppress(ApiException, HTTPError):
            # Not preloaded: the client would turn the bytes into their repr, b'…'.
            answer = self.client.read_namespaced_pod_log(
                pod.metadata.name,
                self.namespace,
                container=workload.container,
                tail_lines=_LAST_LINES,
                _preload_content=False,
            )
            for line in answer.data.decode(errors="replace").splitlines():
                self.log.error("  %s", line)
