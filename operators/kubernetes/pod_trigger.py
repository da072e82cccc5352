"""Watches the pod of a deferred task, through what a cluster does to pods and to its own API."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import cached_property
from typing import Any

from aiohttp import ClientError
from airflow.providers.cncf.kubernetes.exceptions import KubernetesApiError
from airflow.providers.cncf.kubernetes.triggers.pod import KubernetesPodTrigger
from airflow.providers.cncf.kubernetes.utils.pod_manager import AsyncPodManager, OnKillAction, PodLaunchTimeoutException
from airflow.sdk.configuration import conf
from kubernetes_asyncio.client.exceptions import ApiException
from kubernetes_asyncio.client.models import V1Pod

from operators.kubernetes.pod_failures import fate_of, obstacle, overdue, unschedulable
from operators.kubernetes.pod_logs import LOG_PLACE, FollowedLog

FATE = "fate"
"""Key of the event: why the pod was being taken away when it was last seen."""

UNREACHABLE = "unreachable_seconds"
"""Key of the event, and of `trigger_kwargs`: how long the Kubernetes API may be away."""

PATIENCE_SECONDS = 60.0
"""A Secret may come a moment after the pod that wants it."""

_KILL_SECONDS = 0.9 * conf.getint("triggerer", "on_kill_timeout", fallback=30)
"""Of what Airflow gives `on_kill`, so that some is left to say what it has not done."""

_KILL_PAUSE_SECONDS = 1.0


class PodJobTrigger(KubernetesPodTrigger):
    """The provider's trigger, which in addition

    - outlasts a Kubernetes API that is away, up to `trigger_kwargs["unreachable_seconds"]`;
    - gives up early on a pod that cannot start, and on one whose node is lost;
    - remembers why a pod is being taken away: once it is gone, nothing else says so;
    - logs each line of the pod once, also where it takes the place of another: the provider's loses and doubles lines
      at the ends of its intervals, and a replaced triggerer's begins with the first again;
    - logs why no node takes the pod;
    - tries to delete the pod for as long as Airflow waits for that, where a person marked or cleared the task.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._stuck_since: float | None = None
        self._waits_for: str | None = None
        self._pod_log = FollowedLog(self, self.trigger_kwargs.get(LOG_PLACE))

    def serialize(self) -> tuple[str, dict[str, Any]]:
        return "operators.kubernetes.pod_trigger.PodJobTrigger", super().serialize()[1]

    @cached_property
    def pod_manager(self) -> AsyncPodManager:
        return _Watching(self)

    async def on_kill(self) -> None:
        """A person cleared the task or marked it: the pod goes. Stopping the triggerer comes not here."""
        if self._fired_event or self.on_kill_action == OnKillAction.KEEP_POD:
            return

        async def delete() -> None:
            await self.hook.delete_pod(self.pod_name, self.pod_namespace, self.termination_grace_period)

        await delete_in_time(self.log, delete, "pods", self.pod_name, self.pod_namespace)

    async def _get_pod(self) -> V1Pod:
        pod = await self._read()
        # However this trigger ends: the task's next step reads on from there.
        self.trigger_kwargs = {**self.trigger_kwargs, LOG_PLACE: await self._pod_log.place()}
        fate = fate_of(pod)
        if fate is not None:
            self.trigger_kwargs = {**self.trigger_kwargs, FATE: fate}
        if fate is not None and overdue(pod):
            raise PodLaunchTimeoutException(fate)
        waits_for = unschedulable(pod)
        if waits_for is not None and waits_for != self._waits_for:
            self.log.info("pod %s waits for a node: %s", self.pod_name, waits_for)
        self._waits_for = waits_for
        found = obstacle(pod)
        now = asyncio.get_running_loop().time()
        if found is None:
            self._stuck_since = None
        elif self._stuck_since is None:
            self._stuck_since = now
        elif now - self._stuck_since > PATIENCE_SECONDS:
            raise PodLaunchTimeoutException(str(found))
        return pod

    async def follow_log(self, pod: V1Pod) -> None:
        """Log what is new of the pod's log."""
        async with self.hook.get_conn() as client:
            await self._pod_log.follow(client, pod, self.base_container_name)

    async def _read(self) -> V1Pod:
        clock = asyncio.get_running_loop().time
        away_since: float | None = None
        while True:
            try:
                return await self.hook.get_pod(name=self.pod_name, namespace=self.pod_namespace)
            except (ApiException, KubernetesApiError, ClientError, OSError) as error:
                if isinstance(error, ApiException) and not passes(error):
                    raise
                if away_since is None:
                    away_since = clock()
                    self.log.warning("the Kubernetes API is away (%s): pod %s goes on meanwhile", error, self.pod_name)
                elif clock() - away_since > self.trigger_kwargs.get(UNREACHABLE, 0):
                    raise
            await asyncio.sleep(self.poll_interval)


class _Watching(AsyncPodManager):
    """Reads pods as its trigger does."""

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
    """Delete what a person does not want any more, as often as Airflow leaves time for; else say in the log what stays.

    Args:
        delete: one request, which raises what the asynchronous client raises.
        plural: what kubectl calls such objects.
    """
    said = f"no answer within {_KILL_SECONDS:.0f} s"
    try:
        async with asyncio.timeout(_KILL_SECONDS):
            while True:
                try:
                    await delete()
                    log.info("%s/%s was deleted: what ran saves and ends", plural, name)
                    return
                except ApiException as error:
                    if error.status in (404, 409):
                        # It is gone, or another has its name by now.
                        return
                    said = f"{error.status} {error.reason}"
                    if not passes(error):
                        break
                except (KubernetesApiError, ClientError, OSError) as error:
                    said = str(error) or type(error).__name__
                log.warning("%s/%s could not be deleted yet: %s", plural, name, said)
                await asyncio.sleep(_KILL_PAUSE_SECONDS)
    except TimeoutError:
        pass
    log.error(
        "%s/%s was not deleted (%s) and goes on: once the Kubernetes API allows, `kubectl --namespace %s delete %s %s`",
        *(plural, name, said, namespace, plural, name),
    )


def passes(error: ApiException) -> bool:
    """Whether asking again can help."""
    return error.status in (None, 0, 401, 408, 429) or error.status >= 500
