"""Jobs as pods of a Kubernetes cluster."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
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
from operators.kubernetes.gpu_memory import require_room
from operators.kubernetes.pod_failures import (
    OVERDUE_SECONDS,
    away,
    ended_by_cluster,
    exit_of,
    fate_of,
    gone,
    obstacle,
    refused,
    unschedulable,
)
from operators.kubernetes.pod_logs import CHUNK_BYTES, LOG_PLACE, LogReader
from operators.kubernetes.pod_spec import SPEC_ANNOTATION, job_pod
from operators.kubernetes.pod_trigger import FATE, UNREACHABLE, PodJobTrigger

if TYPE_CHECKING:
    from datetime import timedelta

    from airflow.sdk import Context
    from airflow.triggers.base import BaseTrigger

    from include.artifacts.manifest import Manifest

_SPEC = "spec"
"""Key of the event: URI of the spec that the pod works on. The process that reads it is not the one that planned."""

_PAUSE_SECONDS = 2.0


class PodJobOperator(JobOperator, KubernetesPodOperator):
    """Run one job as a pod, or reuse what it made before; returns the artifact's URI.

    A task has one pod at a time: its name follows from the task, and the API server makes no second one of a name. A
    pod that a crash has left is adopted; one that is being deleted is waited for. Success is exit 0 and a manifest that
    verifies.

    Args:
        kwargs: `JobOperator`'s, and any of KubernetesPodOperator's arguments; what they state comes before the
            platform's.
    """

    ui_color = "#dfe7fd"

    @classmethod
    def platform_arguments(cls, platform: Platform, task_id: str) -> dict[str, Any]:
        """Return the pool and the retries that the cluster has for the task, where it has any.

        Raises:
            ConfigurationError: the platform has no cluster.
        """
        cluster = _cluster(platform)
        by_task = {"pool": cluster.pools, "retries": cluster.retries}
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
            # Reads every event of the namespace; the trigger tells what the pod waits for.
            "log_events_on_startup": False,
            "termination_message_policy": "FallbackToLogsOnError",
        }
        # do_xcom_push would add the provider's sidecar to the pod; what the task returns is pushed below.
        super().__init__(**{**defaults, **kwargs, "do_xcom_push": False, "random_name_suffix": False})
        self._spec_uri: str | None = None
        self._plan: JobPlan | None = None
        self._uri: str | None = None
        self._log_reader = LogReader()

    @property
    def cluster(self) -> Cluster:
        return _cluster(self.platform)

    @record_failure
    def execute(self, context: Context) -> str | None:
        if self.section is None:
            self.log.info("this recipe has no stage %s", self.task_id)
            return None
        if manifest := self._reuse(context):
            return self._made(context, manifest)
        return self._concluded(context, {"status": "unseen"}, lambda: super(PodJobOperator, self).execute(context))

    @record_failure
    def trigger_reentry(self, context: Context, event: dict[str, Any]) -> str | None:
        """Where the task goes on once the trigger has fired: to the verdict, or back to waiting."""
        self._take(event[_SPEC])
        self._log_reader = LogReader(event.get(LOG_PLACE))
        return self._concluded(context, event, lambda: super(PodJobOperator, self).trigger_reentry(context, event))

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """Where the trigger itself failed, the next try adopts what runs; without one, nobody would look after it."""
        self._own(context)
        try:
            return super().resume_execution(next_method, next_kwargs, context)
        except TaskDeferralTimeout:
            self.on_kill()
            raise AirflowException(
                f"the task's time (execution_timeout) was up, and {self.pod_name(context)} was stopped: the next try "
                "goes on where this one has saved"
            ) from None
        except TaskDeferralError:
            if context["ti"].try_number > context["ti"].max_tries:
                self.on_kill()
            raise

    @contextmanager
    def looked_after(self, context: Context) -> Iterator[None]:
        """What has failed may have made a pod all the same; the next try adopts it, and after the last it goes."""
        try:
            yield
        except Exception:
            if context["ti"].try_number > context["ti"].max_tries:
                with suppress(HTTPError):
                    self.on_kill()
            raise

    def _own(self, context: Context) -> None:
        """Know what runs for this task before it is looked at, so that on_kill deletes it."""
        if self.section is not None:
            self.pod = V1Pod(metadata=V1ObjectMeta(name=self.pod_name(context), namespace=self.namespace))

    def pod_name(self, context: Context) -> str:
        """The same for every try of a task, and for no other task of this store's Airflow."""
        assert self.section is not None
        ti = context["ti"]
        key = digest([self.platform.store, ti.dag_id, ti.run_id, ti.task_id, ti.map_index])
        return f"anemone-{self.section['job'].replace('_', '-')}-{key[:16]}"

    def build_pod_request_obj(self, context: Context | None = None, *, dry_run: bool = False) -> V1Pod:
        assert self.section is not None and self._plan is not None and self._spec_uri is not None
        pod = job_pod(self._plan.spec, self._spec_uri, self.platform, size=self.section.get("size"))
        if context is not None:
            self.name = self.pod_name(context)
            if recipe := context["params"].get("recipe"):
                pod["metadata"]["labels"]["anemone/recipe"] = make_safe_label_value(recipe.replace("/", "."))
        self.full_pod_spec = PodGenerator.deserialize_model_dict(pod)
        self.pod_template_dict = self.cluster.pod_template or None
        made = super().build_pod_request_obj(context, dry_run=dry_run)
        # The provider takes what is False for what is not stated, and would let the template have its way.
        for name in made.spec.openapi_types:
            if getattr(self.full_pod_spec.spec, name) is False:
                setattr(made.spec, name, False)
        return made

    def get_or_create_pod(self, pod_request_obj: V1Pod, context: Context) -> V1Pod:
        with self.looked_after(context):
            return self._require_pod(pod_request_obj, context)

    def _require_pod(self, pod_request_obj: V1Pod, context: Context) -> V1Pod:
        """The task's one pod: adopted where a crash has left it, made where there is none."""
        # Known before it exists, so that on_kill deletes it whenever it comes.
        self.pod = pod_request_obj
        name, until = pod_request_obj.metadata.name, None
        while not self._killed:
            found = self.find_pod(self.namespace, context)
            if found is None:
                try:
                    made = self._create_pod(pod_request_obj)
                except ApiException as error:
                    if error.status == 409 and self.find_pod(self.namespace, context) is not None:
                        # Its own request, whose answer was lost, or another try's that is still alive.
                        continue
                    raise refused(error, f"make pod {name}") from None
                if self._killed:
                    self.on_kill()
                    break
                return made
            if found.metadata.deletion_timestamp is None:
                if self._adopts(found):
                    self.log.info("adopted pod %s (%s), which an earlier try has left", name, found.status.phase)
                    self._take(found.metadata.annotations[SPEC_ANNOTATION])
                    return found
                self.log.info("pod %s of an earlier try (%s) makes room for this one", name, found.status.phase)
                self._delete_pod(found)
            elif until is None:
                self.log.info("pod %s is being deleted: waiting for its end", name)
            until = until or time.monotonic() + _grace(found) + OVERDUE_SECONDS
            if time.monotonic() > until:
                raise gone(name, fate_of(found))
            time.sleep(_PAUSE_SECONDS)
        raise AirflowException(f"stopped on request before pod {name} was needed")

    @generic_api_retry
    def find_pod(self, namespace: str, context: Context, *, exclude_checked: bool = True) -> V1Pod | None:
        """The task's pod as it is now, by its name; labels may be another's too."""
        try:
            return self.hook.get_pod(self.pod_name(context), namespace)
        except ApiException as error:
            if error.status != 404:
                raise
            return None

    def convert_config_file_to_dict(self) -> None:
        """Nothing: the triggerer reads the connection itself, and no credentials lie in its queue."""
        self._config_dict = None

    def invoke_defer_method(self, last_log_time: Any = None, context: Context | None = None) -> None:
        self._remember()
        if context is not None:
            context["ti"].xcom_push(key=LOG_PLACE, value=self._log_reader.place or {})
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
        # Without the connection's extras, in which a kubeconfig may stand: the trigger reads the connection itself.
        arguments = {**arguments, "connection_extras": None}
        super().defer(trigger=PodJobTrigger(**arguments), method_name=method_name, kwargs=kwargs, timeout=timeout)

    def cleanup(
        self, pod: V1Pod, remote_pod: V1Pod, xcom_result: dict | None = None, context: Context | None = None
    ) -> None:
        """Keep how the pod ended for the verdict, and take it away; the provider's own verdict sees its phase only."""
        if self._killed or remote_pod is None or context is None:
            return
        self.remote_pod = self.find_pod(self.namespace, context) or remote_pod
        ended = exit_of(self.remote_pod)
        succeeded = ended is not None and ended[0] == 0
        if not succeeded:
            self._read_pod_events(self.remote_pod, reraise=False)
        # One that never ran, or still does, would go on to hold what it asked for.
        if succeeded or self.remote_pod.status.phase != "Failed" or not self.cluster.keep_failed_pods:
            with suppress(ApiException, HTTPError):
                self._delete_pod(self.remote_pod)

    def _reuse(self, context: Context) -> Manifest | None:
        """Plan the job: what it made before, or None and a spec for the pods that are to make it."""
        assert self.section is not None
        job = self.section["job"]
        self._plan = self.plan(context, image=self.cluster.image(job, spec_class(job).environment))
        if manifest := self.reused(self._plan):
            self._tidy_up(context)
            return manifest
        if line := require_room(self._plan, self.cluster, self.section.get("size")):
            self.log.info("%s", line)
        self._spec_uri = self._plan.write_spec()
        return None

    @generic_api_retry
    def _write_logs(self, pod: V1Pod, follow: bool = False, since_time: Any = None) -> None:
        """What the trigger has not logged yet."""
        response = self.client.api_client.call_api(**self._log_reader.request(pod, self.base_container_name))
        with closing(response):
            for data in response.stream(CHUNK_BYTES):
                for line in self._log_reader.take(data):
                    self.log.info("%s", line)
        for line in self._log_reader.finish():
            self.log.info("%s", line)

    def _concluded(self, context: Context, event: Mapping[str, Any], step: Any) -> str:
        """What the job made, after `step` has followed its pod to the end."""
        with api_answers(f"follow pod {self.pod_name(context)}"):
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
            # The pod had ended when it was found, and the provider has gone to the end without deferring.
            return self._uri
        return self._made(context, self._judge(context, event))

    def _judge(self, context: Context, event: Mapping[str, Any]) -> Manifest:
        assert self._plan is not None
        plan, name, pod = self._plan, self.pod_name(context), self.remote_pod
        if pod is None and event["status"] == "success":
            return plan.conclude(0, None)
        if pod is None:
            raise gone(name, event.get(FATE))
        if found := ended_by_cluster(pod):
            raise found
        if ended := exit_of(pod):
            return plan.conclude(*ended)
        if found := obstacle(pod):
            raise found
        if waits_for := unschedulable(pod):
            raise JobFailedError(
                f"no node took pod {name} within {self.schedule_timeout_seconds} s ({waits_for}): add nodes, free "
                "some, or ask for less in the platform's cluster.sizes",
                retryable=True,
            )
        if pod.status.phase == "Pending":
            raise JobFailedError(
                f"pod {name} did not start within {self.startup_timeout_seconds} s: see its events above, and its node "
                f"{pod.spec.node_name}",
                retryable=True,
            )
        raise JobFailedError(
            f"pod {name} was still running when the task's time was up; it was stopped", retryable=True
        )

    def _made(self, context: Context, manifest: Manifest) -> str:
        assert self._plan is not None
        self._uri = self.announce(context, self._plan, manifest)
        context["ti"].xcom_push(key=XCOM_RETURN_KEY, value=self._uri)
        return self._uri

    def _adopts(self, found: V1Pod) -> bool:
        """Whether a pod that is there does, or did, what this try wants."""
        if found.status.phase == "Failed":
            return False
        return self._works_on_ours(found.metadata.annotations)

    def _works_on_ours(self, annotations: Mapping[str, str] | None) -> bool:
        """Whether what carries these annotations makes what this try is to make."""
        ours, theirs = self._plan, (annotations or {}).get(SPEC_ANNOTATION)
        if theirs is None or ours is None:
            return False
        try:
            other = JobPlan.stored(theirs, self.store)
        except TryAgainError:
            # What cannot be read any more is not what this try wants.
            return False
        # Each try names an effect anew, and the one that goes on must not be done a second time beside it.
        return other.name == ours.name or (ours.spec.kind == "effect" and other.spec.job == ours.spec.job)

    def _tidy_up(self, context: Context) -> None:
        """Take away what a try has left that crashed after its job had committed."""
        if context["ti"].try_number > 1:
            with suppress(ApiException, HTTPError, KubernetesApiException):
                if left := self.find_pod(self.namespace, context):
                    self._delete_pod(left)

    def _take(self, spec_uri: str) -> None:
        """Go on with the job that another process has planned."""
        self._spec_uri, self._plan = spec_uri, JobPlan.stored(spec_uri, self.store)

    def _remember(self) -> None:
        """What the trigger's event has to carry to the process that goes on after it."""
        self.trigger_kwargs = {
            **(self.trigger_kwargs or {}),
            _SPEC: self._spec_uri,
            LOG_PLACE: self._log_reader.place,
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


def _cluster(platform: Platform) -> Cluster:
    if platform.cluster is None:
        raise ConfigurationError(
            f"the platform {platform.name} has no cluster: give it the section, or set ANEMONE_PLATFORM to one that "
            "has it"
        )
    return platform.cluster


def _grace(pod: V1Pod) -> float:
    return pod.metadata.deletion_grace_period_seconds or pod.spec.termination_grace_period_seconds or 30


@contextmanager
def api_answers(what: str) -> Iterator[None]:
    """Turn what the Kubernetes API answers, or does not, into a verdict on the task."""
    try:
        yield
    except ApiException as error:
        raise refused(error, what) from None
    except (HTTPError, KubernetesApiException) as error:
        raise away(error, what) from None
    except ConfigException as error:
        raise ConfigurationError(
            f"there is no way to the cluster ({error}): give Airflow's connection a kubeconfig, or run Airflow in it"
        ) from None
