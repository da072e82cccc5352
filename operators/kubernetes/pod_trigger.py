"""Watches the pod of a deferred task, also while the cluster removes pods or its API cannot be reached."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from functools import cached_property
from typing import Any

from aiohttp import ClientError
from airflow.providers.cncf.kubernetes.exceptions import KubernetesApiError
from airflow.providers.cncf.kubernetes.triggers.pod import KubernetesPodTrigger
from airflow.providers.cncf.kubernetes.utils.pod_manager import AsyncPodManager, OnKillAction, PodLaunchTimeoutException
from airflow.sdk.configuration import conf
from kubernetes_asyncio.client.exceptions import ApiException
from kubernetes_asyncio.client.models import V1Pod

from operators.kubernetes.pod_failures import (
    api_error,
    describe_error,
    disruption_of,
    overdue,
    pod_gone,
    startup_failure,
    unschedulable,
)
from operators.kubernetes.pod_logs import LOG_POSITION, FollowedLog

DISRUPTION = "disruption"
"""Key of the event: why the pod was being removed when it was last seen."""

UNREACHABLE = "unreachable_seconds"
"""Key of the event, and of `trigger_kwargs`: how long the Kubernetes API may be unreachable."""

STARTUP_FAILURE_SECONDS = 60.0
"""How long a pod may be unable to start: a Secret may be created a moment after the pod that needs it."""

_KILL_SECONDS = 0.9 * conf.getint("triggerer", "on_kill_timeout", fallback=30)
"""Less than Airflow gives `on_kill`, so that there is time to log what was not done."""

_KILL_PAUSE_SECONDS = 1.0


class PodJobTrigger(KubernetesPodTrigger):
    """The provider's trigger, which in addition

    - waits while the Kubernetes API cannot be reached, up to `trigger_kwargs["unreachable_seconds"]`;
    - gives up early on a pod that cannot start, and on one whose node is lost;
    - reports why a pod is being removed: once it is gone, nothing else says so;
    - logs each line of the pod once, also after another triggerer has logged some: the provider's loses and repeats
      lines at the ends of its intervals, and starts again with the first one in another triggerer;
    - logs why no node takes the pod;
    - tries to delete the pod for as long as Airflow waits for that, where a person marked or cleared the task.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._failing_since: float | None = None
        self._unschedulable: str | None = None
        self._pod_log = FollowedLog(self, self.trigger_kwargs.get(LOG_POSITION))

    def serialize(self) -> tuple[str, dict[str, Any]]:
        return "operators.kubernetes.pod_trigger.PodJobTrigger", super().serialize()[1]

    @cached_property
    def pod_manager(self) -> AsyncPodManager:
        return _PodManager(self)

    async def on_kill(self) -> None:
        """Delete the pod: a person cleared or marked the task. Not called when the triggerer stops."""
        if self._fired_event or self.on_kill_action == OnKillAction.KEEP_POD:
            return

        async def delete() -> None:
            await self.hook.delete_pod(self.pod_name, self.pod_namespace, self.termination_grace_period)

        await delete_in_time(self.log, delete, "pods", self.pod_name, self.pod_namespace)

    # The provider's is wrapped in tenacity's retries, which `_read` takes the place of.
    async def _get_pod(self) -> V1Pod:  # type: ignore[override]
        pod = await self._read()
        # Part of the event, however this trigger ends: the task's next step reads on from there.
        self.trigger_kwargs = {**self.trigger_kwargs, LOG_POSITION: await self._pod_log.position()}
        disruption = disruption_of(pod)
        if disruption is not None:
            self.trigger_kwargs = {**self.trigger_kwargs, DISRUPTION: disruption}
        if disruption is not None and overdue(pod):
            raise PodLaunchTimeoutException(disruption)
        reason = unschedulable(pod)
        if reason is not None and reason != self._unschedulable:
            self.log.info("pod %s waits for a node: %s", self.pod_name, reason)
        self._unschedulable = reason
        failure = startup_failure(pod)
        now = asyncio.get_running_loop().time()
        if failure is None:
            self._failing_since = None
        elif self._failing_since is None:
            self._failing_since = now
        elif now - self._failing_since > STARTUP_FAILURE_SECONDS:
            raise PodLaunchTimeoutException(str(failure))
        return pod

    async def follow_log(self, pod: V1Pod) -> None:
        """Log the new lines of the pod's log."""
        async with self.hook.get_conn() as client:
            await self._pod_log.follow(client, pod, self.base_container_name)

    async def _read(self) -> V1Pod:
        clock = asyncio.get_running_loop().time
        unreachable_since: float | None = None
        while True:
            try:
                return await self.hook.get_pod(name=self.pod_name, namespace=self.pod_namespace)
            except (ApiException, KubernetesApiError, ClientError, OSError) as error:
                # What is raised becomes the trigger's event. The provider logs what it does not expect with its
                # traceback: the end of a pod is expected, and an answer's headers belong in no log.
                if isinstance(error, ApiException) and error.status == 404:
                    gone = pod_gone(self.pod_name, disruption_in(self.trigger_kwargs))
                    raise PodLaunchTimeoutException(str(gone)) from None
                if isinstance(error, ApiException) and not is_transient(error):
                    raise KubernetesApiError(str(api_error(error, f"watch pod {self.pod_name}"))) from None
                if unreachable_since is None:
                    unreachable_since = clock()
                    self.log.warning(
                        "the Kubernetes API cannot be reached (%s): pod %s runs meanwhile",
                        *(describe_error(error), self.pod_name),
                    )
                elif clock() - unreachable_since > self.trigger_kwargs.get(UNREACHABLE, 0):
                    raise KubernetesApiError(describe_error(error)) from None
            await asyncio.sleep(self.poll_interval)


class _PodManager(AsyncPodManager):
    """Reads pods and logs as its trigger does."""

    def __init__(self, trigger: PodJobTrigger) -> None:
        super().__init__(async_hook=trigger.hook)
        self._trigger = trigger

    async def read_pod(self, pod: V1Pod) -> V1Pod:
        return await self._trigger._get_pod()

    async def fetch_container_logs_before_current_sec(
        self, pod: V1Pod, container_name: str, since_time: Any = None
    ) -> Any:
        await self._trigger.follow_log(pod)


async def delete_in_time(
    log: Any, delete: Callable[[], Awaitable[None]], plural: str, name: str, namespace: str
) -> None:
    """Delete an object whose task a person stopped, with retries for as long as Airflow waits; else log that it stays.

    Args:
        delete: sends one request, and raises what the asynchronous client raises.
        plural: what kubectl calls such objects.
    """
    failure = f"no answer within {_KILL_SECONDS:.0f} s"
    try:
        async with asyncio.timeout(_KILL_SECONDS):
            while True:
                try:
                    await delete()
                    log.info("%s/%s was deleted: it saves and ends", plural, name)
                    return
                except ApiException as error:
                    if error.status in (404, 409):
                        # It is gone, or another object has its name by now.
                        return
                    failure = f"{error.status} {error.reason}"
                    if not is_transient(error):
                        break
                except (KubernetesApiError, ClientError, OSError) as error:
                    failure = str(error) or type(error).__name__
                log.warning("%s/%s could not be deleted yet: %s", plural, name, failure)
                await asyncio.sleep(_KILL_PAUSE_SECONDS)
    except TimeoutError:
        pass
    log.error(
        "%s/%s was not deleted (%s) and still runs: as soon as the Kubernetes API allows, "
        "`kubectl --namespace %s delete %s %s`",
        *(plural, name, failure, namespace, plural, name),
    )


def is_transient(error: ApiException) -> bool:
    """Return whether the same request can succeed later."""
    return error.status in (None, 0, 401, 408, 429) or error.status >= 500


def disruption_in(event: Mapping[str, Any]) -> str | None:
    """Return why a pod was being removed, of a trigger's event; version 0.1 called the key `fate`."""
    return event.get(DISRUPTION, event.get("fate"))
