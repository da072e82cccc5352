"""Jobs as pods of a Kubernetes cluster."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from typing import TYPE_CHECKING, Any, NoReturn

from airflow.providers.cncf.kubernetes.kubernetes_helper_functions import KubernetesApiException, generic_api_retry
from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator
from airflow.providers.cncf.kubernetes.pod_generator import PodGenerator, make_safe_label_value
from airflow.providers.cncf.kubernetes.utils.pod_manager import PodNotFoundException
from airflow.providers.common.compat.sdk import XCOM_RETURN_KEY
from airflow.sdk.exceptions import AirflowException, TaskDeferralError, TaskDeferralTimeout
from kubernetes.client import V1DeleteOptions, V1ObjectMeta, V1Pod, V1Preconditions
from kubernetes.client.exceptions import ApiException
from kubernetes.config import ConfigException
from urllib3.exceptions import HTTPError

from include.artifacts.naming import digest
from include.errors import ConfigurationError, TryAgainError
from include.job_plan import JobFailedError, JobPlan
from include.platforms import Platform
from include.platforms.cluster import Cluster
from include.specs import spec_class
from operators.errors import record_failure
from operators.job import JobOperator
from operators.kubernetes.gpu_memory import require_gpu_memory
from operators.kubernetes.pod_failures import (
    OVERDUE_SECONDS,
    api_error,
    api_unavailable,
    disruption_of,
    ended_by_cluster,
    exit_of,
    pod_gone,
    startup_failure,
    unschedulable,
)
from operators.kubernetes.pod_logs import CHUNK_BYTES, LOG_POSITION, LogReader
from operators.kubernetes.pod_spec import SPEC_ANNOTATION, cluster_of, job_pod
from operators.kubernetes.pod_trigger import UNREACHABLE, PodJobTrigger, disruption_in

if TYPE_CHECKING:
    from datetime import timedelta

    from airflow.sdk import Context
    from airflow.triggers.base import BaseTrigger

    from include.artifacts.manifest import Manifest

_SPEC = "spec"
"""Key of the event: URI of the spec that the pod works on, since another process resumes the task."""

_PAUSE_SECONDS = 2.0


class PodJobOperator(JobOperator, KubernetesPodOperator):
    """Run one job as a pod, or reuse what it made before; the task returns the artifact's URI.

    A task has one pod at a time: its name follows from the task, and the API server creates no second one of a name. A
    pod that a crash has left is adopted; one that is being deleted is waited for. Success is exit 0 and a manifest that
    verifies.

    Args:
        kwargs: `JobOperator`'s, and any of KubernetesPodOperator's arguments; they come before the platform's.
    """

    ui_color = "#dfe7fd"

    @classmethod
    def platform_arguments(cls, platform: Platform, task_id: str) -> dict[str, Any]:
        """Return the pool and the retries that the cluster has for the task, where it has any.

        Raises:
            ConfigurationError: the platform has no cluster.
        """
        cluster = cluster_of(platform)
        by_task: dict[str, Mapping[str, Any]] = {"pool": cluster.pools, "retries": cluster.retries}
        return {key: values[task_id] for key, values in by_task.items() if task_id in values}

    def __init__(self, **kwargs: Any) -> None:
        cluster = self.cluster
        defaults = {
            "kubernetes_conn_id": cluster.connection,
            "in_cluster": cluster.in_cluster,
            "namespace": cluster.namespace,
            "schedule_timeout_seconds": cluster.schedule_timeout_seconds,
            "startup_timeout_seconds": cluster.startup_timeout_seconds,
            "deferrable": True,
            "poll_interval": 5,
            "logging_interval": 30,
            # Would read every event of the namespace; the trigger logs what the pod waits for.
            "log_events_on_startup": False,
            "termination_message_policy": "FallbackToLogsOnError",
        }
        # do_xcom_push would add the provider's sidecar to the pod; `_push_artifact` pushes what the task returns.
        super().__init__(**{**defaults, **kwargs, "do_xcom_push": False, "random_name_suffix": False})
        self._spec_uri: str | None = None
        self._plan: JobPlan | None = None
        self._uri: str | None = None
        self._log_reader = LogReader()

    @property
    def cluster(self) -> Cluster:
        return cluster_of(self.platform)

    @record_failure
    def execute(self, context: Context) -> str | None:
        if self.section is None:
            self.log.info("this recipe has no stage %s", self.task_id)
            return None
        if manifest := self._reuse(context):
            return self._push_artifact(context, manifest)
        return self._follow_pod(context, {"status": "unseen"}, lambda: super(PodJobOperator, self).execute(context))

    @record_failure
    def trigger_reentry(self, context: Context, event: dict[str, Any]) -> str | None:
        """Resume after the trigger has fired: conclude the job, or defer again."""
        self._load_plan(event[_SPEC])
        self._log_reader = LogReader(event.get(LOG_POSITION))

        def conclude() -> None:
            # Asked first: the provider warns of a pod that is gone, and guesses why.
            if self.find_pod(event["namespace"], context) is None:
                raise PodNotFoundException
            super(PodJobOperator, self).trigger_reentry(context, event)

        return self._follow_pod(context, event, conclude)

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """Delete what runs where the trigger itself failed and no next try would adopt it.

        Raises:
            AirflowException: the task's `execution_timeout` is over.
        """
        self._know_own_objects(context)
        try:
            return super().resume_execution(next_method, next_kwargs, context)
        except TaskDeferralTimeout:
            self.on_kill()
            raise AirflowException(
                f"the task's time (execution_timeout) was up, and {self.pod_name(context)} was stopped: the next try "
                "continues from what this one has saved"
            ) from None
        except TaskDeferralError:
            if context["ti"].try_number > context["ti"].max_tries:
                self.on_kill()
            raise

    @contextmanager
    def deleting_after_last_try(self, context: Context) -> Iterator[None]:
        """Delete what a failed request may have created all the same, where no next try would adopt it."""
        try:
            yield
        except Exception:
            if context["ti"].try_number > context["ti"].max_tries:
                with suppress(HTTPError):
                    self.on_kill()
            raise

    def _know_own_objects(self, context: Context) -> None:
        """Set what runs for this task before it is read, so that on_kill deletes it."""
        if self.section is not None:
            self.pod = V1Pod(metadata=V1ObjectMeta(name=self.pod_name(context), namespace=self.namespace))

    def pod_name(self, context: Context) -> str:
        """Return a name that all tries of a task share, and no other task of any Airflow with this store."""
        ti = context["ti"]
        key = digest([self.platform.store, ti.dag_id, ti.run_id, ti.task_id, ti.map_index])
        return f"anemone-{self.stage_section.job.replace('_', '-')}-{key[:16]}"

    def build_pod_request_obj(self, context: Context | None = None, *, dry_run: bool = False) -> V1Pod:
        assert self._plan is not None and self._spec_uri is not None
        pod = job_pod(self._plan.spec, self._spec_uri, self.platform, size=self.stage_section.size)
        if context is not None:
            self.name = self.pod_name(context)
            if recipe := context["params"].get("recipe"):
                pod["metadata"]["labels"]["anemone/recipe"] = make_safe_label_value(recipe.replace("/", "."))
        self.full_pod_spec = PodGenerator.deserialize_model_dict(pod)
        self.pod_template_dict = self.cluster.pod_template or None
        merged = super().build_pod_request_obj(context, dry_run=dry_run)
        # The provider takes False for unset, and would prefer the template's value.
        for name in merged.spec.openapi_types:
            if getattr(self.full_pod_spec.spec, name) is False:
                setattr(merged.spec, name, False)
        return merged

    def get_or_create_pod(self, pod_request_obj: V1Pod, context: Context) -> V1Pod:
        with self.deleting_after_last_try(context):
            return self._require_pod(pod_request_obj, context)

    def _require_pod(self, pod_request_obj: V1Pod, context: Context) -> V1Pod:
        """Return the task's one pod: adopt the one that a crash has left, or create it."""
        # Set before it exists, so that on_kill deletes it whenever it is created.
        self.pod = pod_request_obj
        name, until = pod_request_obj.metadata.name, None
        while not self._killed:
            found = self.find_pod(self.namespace, context)
            if found is None:
                try:
                    created = self._create_pod(pod_request_obj)
                except ApiException as error:
                    if error.status == 409 and self.find_pod(self.namespace, context) is not None:
                        # Created by this request, whose answer was lost, or by another try that is still alive.
                        continue
                    raise api_error(error, f"create pod {name}") from None
                if self._killed:
                    self.on_kill()
                    break
                return created
            if found.metadata.deletion_timestamp is None:
                if self._adopts(found):
                    self.log.info("adopted pod %s (%s), which an earlier try has left", name, found.status.phase)
                    self._load_plan(found.metadata.annotations[SPEC_ANNOTATION])
                    return found
                self.log.info(
                    "pod %s of an earlier try (%s) is deleted before this one starts", name, found.status.phase
                )
                self._delete_pod(found)
            elif until is None:
                self.log.info("pod %s is being deleted: waiting for its end", name)
            until = until or time.monotonic() + _grace(found) + OVERDUE_SECONDS
            if time.monotonic() > until:
                raise pod_gone(name, disruption_of(found))
            time.sleep(_PAUSE_SECONDS)
        raise AirflowException(f"stopped on request before pod {name} was needed")

    @generic_api_retry
    def find_pod(self, namespace: str, context: Context, *, exclude_checked: bool = True) -> V1Pod | None:
        """Return the task's pod as it is now, by its name: another task's pod may have the same labels."""
        try:
            return self.hook.get_pod(self.pod_name(context), namespace)
        except ApiException as error:
            if error.status != 404:
                raise
            return None

    def convert_config_file_to_dict(self) -> None:
        """Convert nothing: the triggerer reads the connection itself, and no credentials go to the database."""
        self._config_dict = None

    def invoke_defer_method(self, last_log_time: Any = None, context: Context | None = None) -> None:
        self._set_trigger_kwargs()
        if context is not None:
            context["ti"].xcom_push(key=LOG_POSITION, value=self._log_reader.position or {})
        super().invoke_defer_method(last_log_time, context)

    def defer(
        self,
        *,
        trigger: BaseTrigger,
        method_name: str,
        kwargs: dict[str, Any] | None = None,
        timeout: timedelta | int | float | None = None,
    ) -> NoReturn:
        _, arguments = trigger.serialize()
        # Without the connection's extras, which may hold a kubeconfig: the trigger reads the connection itself.
        arguments = {**arguments, "connection_extras": None}
        super().defer(trigger=PodJobTrigger(**arguments), method_name=method_name, kwargs=kwargs, timeout=timeout)

    def cleanup(
        self, pod: V1Pod, remote_pod: V1Pod, xcom_result: dict | None = None, context: Context | None = None
    ) -> None:
        """Keep the pod's last status for `_judge`, and delete the pod; the provider judges by the phase only."""
        if self._killed or remote_pod is None or context is None:
            return
        self.remote_pod = self.find_pod(self.namespace, context) or remote_pod
        ended = exit_of(self.remote_pod)
        succeeded = ended is not None and ended[0] == 0
        if not succeeded:
            self._read_pod_events(self.remote_pod, reraise=False)
        # One that never ran, or still runs, would keep its resources.
        if succeeded or self.remote_pod.status.phase != "Failed" or not self.cluster.keep_failed_pods:
            with suppress(ApiException, HTTPError):
                self._delete_pod(self.remote_pod)

    def _reuse(self, context: Context) -> Manifest | None:
        """Plan the job. Return what it made before, or write the spec for its pods and return None."""
        job = self.stage_section.job
        self._plan = self.plan(context, image=self.cluster.image(job, spec_class(job).environment))
        if manifest := self.reused(self._plan):
            self._delete_leftovers(context)
            return manifest
        if line := require_gpu_memory(self._plan, self.cluster, self.stage_section.size):
            self.log.info("%s", line)
        self._spec_uri = self._plan.write_spec()
        return None

    @generic_api_retry
    def _write_logs(self, pod: V1Pod, follow: bool = False, since_time: Any = None) -> None:
        """Log the lines that the trigger has not logged yet."""
        response = self.client.api_client.call_api(**self._log_reader.request(pod, self.base_container_name))
        with closing(response):
            for data in response.stream(CHUNK_BYTES):
                for line in self._log_reader.take(data):
                    self.log.info("%s", line)
        for line in self._log_reader.finish():
            self.log.info("%s", line)

    def _follow_pod(self, context: Context, event: Mapping[str, Any], step: Callable[[], object]) -> str:
        """Return the URI of what the job made, after `step` has followed its pod to the end."""
        with kubernetes_errors(f"follow pod {self.pod_name(context)}"):
            try:
                step()
            except PodNotFoundException:
                self.remote_pod = None
            except (JobFailedError, ApiException, KubernetesApiException):
                raise
            except AirflowException as error:
                if self.remote_pod is None or self._killed:
                    raise
                self.log.info("%s", error)
        if self._uri is not None:
            # The pod had ended when it was found: the provider has called trigger_reentry itself.
            return self._uri
        return self._push_artifact(context, self._judge(context, event))

    def _judge(self, context: Context, event: Mapping[str, Any]) -> Manifest:
        """Return what the job made, or raise why it failed: from the pod's last status and the trigger's event."""
        assert self._plan is not None
        plan, name, pod = self._plan, self.pod_name(context), self.remote_pod
        if pod is None and event["status"] == "success":
            return plan.conclude(0, None)
        if pod is None:
            raise pod_gone(name, disruption_in(event))
        if failure := ended_by_cluster(pod):
            raise failure
        if ended := exit_of(pod):
            return plan.conclude(*ended)
        if failure := startup_failure(pod):
            raise failure
        if reason := unschedulable(pod):
            raise JobFailedError(
                f"no node took pod {name} within {self.schedule_timeout_seconds} s ({reason}): add nodes, free "
                "some, or request less in the platform's cluster.sizes",
                retryable=True,
            )
        if pod.status.phase == "Pending":
            raise JobFailedError(
                f"pod {name} did not start within {self.startup_timeout_seconds} s: see its events above, and check "
                f"its node {pod.spec.node_name}",
                retryable=True,
            )
        raise JobFailedError(
            f"pod {name} was still running when the task's time was up; it was stopped", retryable=True
        )

    def _push_artifact(self, context: Context, manifest: Manifest) -> str:
        """Push the artifact's URI as the task's return value, and return it."""
        assert self._plan is not None
        self._uri = self.announce(context, self._plan, manifest)
        context["ti"].xcom_push(key=XCOM_RETURN_KEY, value=self._uri)
        return self._uri

    def _adopts(self, found: V1Pod) -> bool:
        """Return whether an existing pod does, or did, what this try is to do."""
        return found.status.phase != "Failed" and self._makes_the_same(found.metadata.annotations)

    def _makes_the_same(self, annotations: Mapping[str, str] | None) -> bool:
        """Return whether the object with these annotations makes what this try is to make."""
        ours, theirs = self._plan, (annotations or {}).get(SPEC_ANNOTATION)
        if theirs is None or ours is None:
            return False
        try:
            other = JobPlan.stored(theirs, self.store)
        except TryAgainError:
            # The spec cannot be read any more: nobody can say what the object makes.
            return False
        # Each try gives an effect another name; one that is still running must not run a second time beside it.
        return other.name == ours.name or (ours.spec.kind == "effect" and other.spec.job == ours.spec.job)

    def _delete_leftovers(self, context: Context) -> None:
        """Delete the pod of a try that crashed after its job had committed."""
        if context["ti"].try_number > 1:
            with suppress(ApiException, HTTPError, KubernetesApiException):
                if left := self.find_pod(self.namespace, context):
                    self._delete_pod(left)

    def _load_plan(self, spec_uri: str) -> None:
        """Continue the job that another process has planned."""
        self._spec_uri, self._plan = spec_uri, JobPlan.stored(spec_uri, self.store)

    def _set_trigger_kwargs(self) -> None:
        """Set what the trigger's event passes to the process that resumes the task."""
        self.trigger_kwargs = {
            **(self.trigger_kwargs or {}),
            _SPEC: self._spec_uri,
            LOG_POSITION: self._log_reader.position,
            UNREACHABLE: self.cluster.unreachable_seconds,
        }

    @generic_api_retry
    def _create_pod(self, pod: V1Pod) -> V1Pod:
        body = self.client.api_client.sanitize_for_serialization(pod)
        return self.client.create_namespaced_pod(namespace=pod.metadata.namespace, body=body)

    @generic_api_retry
    def _delete_pod(self, pod: V1Pod) -> None:
        options = V1DeleteOptions(preconditions=V1Preconditions(uid=pod.metadata.uid))
        try:
            self.client.delete_namespaced_pod(pod.metadata.name, pod.metadata.namespace, body=options)
        except ApiException as error:
            if error.status not in (404, 409):
                raise


def _grace(pod: V1Pod) -> float:
    return pod.metadata.deletion_grace_period_seconds or pod.spec.termination_grace_period_seconds or 30


@contextmanager
def kubernetes_errors(action: str) -> Iterator[None]:
    """Turn the errors of the Kubernetes client into ours, which say whether another try can succeed.

    Raises:
        TryAgainError: the API server does not answer, or asks to wait.
        ConfigurationError: it refuses, or no kubeconfig was found.
    """
    try:
        yield
    except ApiException as error:
        raise api_error(error, action) from None
    except (HTTPError, KubernetesApiException) as error:
        raise api_unavailable(error, action) from None
    except ConfigException as error:
        raise ConfigurationError(
            f"the cluster cannot be reached ({error}): give Airflow's connection a kubeconfig, or run Airflow in it"
        ) from None
