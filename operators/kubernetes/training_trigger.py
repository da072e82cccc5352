"""Watches a training on several nodes: follows node 0's log, and gives up where not all of its pods start."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

from aiohttp import ClientError
from airflow.providers.cncf.kubernetes.exceptions import KubernetesApiError
from airflow.providers.cncf.kubernetes.hooks.kubernetes import AsyncKubernetesHook
from airflow.triggers.base import BaseTrigger, TriggerEvent
from kubernetes_asyncio.client import ApiClient, CoreV1Api, CustomObjectsApi, V1DeleteOptions, V1Preconditions
from kubernetes_asyncio.client.exceptions import ApiException

from include.job_plan import JobFailedError
from operators.kubernetes.pod_failures import (
    api_error,
    describe_error,
    disruption_of,
    ended_by_cluster,
    lost,
    refusal,
    startup_failure,
    unschedulable,
)
from operators.kubernetes.pod_logs import FollowedLog
from operators.kubernetes.pod_trigger import DISRUPTION, STARTUP_FAILURE_SECONDS, delete_in_time, is_transient
from operators.kubernetes.workloads import TRAINING, WORKLOADS, Workload

_COMBINED = "(combined from similar events): "
"""Begins the message of an event that stands for many; source: client-go, tools/record/events_cache.go."""

_LEAST_SECONDS = 5.0
"""Until a task may be resumed: see `operators.release.trigger`."""


@dataclass
class StuckError(Exception):
    """The training cannot start, or cannot end. `retryable`: whether another try can succeed."""

    message: str
    retryable: bool = True


class TrainingTrigger(BaseTrigger):
    """Fires once a training has ended, is gone, cannot start, or has lost a pod together with its node.

    The event is {"status": "succeeded", "failed", "gone", "stuck" or "unreachable", "message", "disruption": why one of
    its pods was removed before the others, "retryable": whether another try can succeed, "spec" and "uid": the
    arguments}.

    Args:
        name: of the training.
        uid: of its main object; another one may have the name later.
        workload: key of `WORKLOADS`. `nodes`: how many pods it has.
        spec: URI of the spec that it works on, for the event.
        connection: Airflow's, of the cluster. `in_cluster`: None leaves it to the connection.
        since: when it was created (ISO 8601).
        schedule_timeout_seconds: how long a pod may wait for a node while the others hold theirs.
        startup_timeout_seconds: from being scheduled to running.
        unreachable_seconds: how long the Kubernetes API may be unreachable.
    """

    def __init__(
        self,
        *,
        name: str,
        uid: str | None = None,
        namespace: str,
        workload: str,
        nodes: int,
        spec: str,
        connection: str,
        in_cluster: bool | None,
        since: str,
        poll_seconds: float,
        schedule_timeout_seconds: float,
        startup_timeout_seconds: float,
        unreachable_seconds: float,
    ) -> None:
        super().__init__()
        self.name, self.uid, self.namespace = name, uid, namespace
        self.workload, self.nodes, self.spec = workload, nodes, spec
        self.connection, self.in_cluster, self.since, self.poll_seconds = connection, in_cluster, since, poll_seconds
        self.schedule_timeout_seconds = schedule_timeout_seconds
        self.startup_timeout_seconds = startup_timeout_seconds
        self.unreachable_seconds = unreachable_seconds
        self._disruptions: dict[str, tuple[str, bool]] = {}
        self._failing_since: dict[str, datetime] = {}
        self._unschedulable: dict[str, str] = {}
        self._complete = False
        self._warning: str | None = None
        self._refusal: JobFailedError | None = None
        self._refused_seconds = 0.0
        self._logged_warnings: set[str] = set()

    def serialize(self) -> tuple[str, dict[str, Any]]:
        return "operators.kubernetes.training_trigger.TrainingTrigger", {
            "name": self.name,
            "uid": self.uid,
            "namespace": self.namespace,
            "workload": self.workload,
            "nodes": self.nodes,
            "spec": self.spec,
            "connection": self.connection,
            "in_cluster": self.in_cluster,
            "since": self.since,
            "poll_seconds": self.poll_seconds,
            "schedule_timeout_seconds": self.schedule_timeout_seconds,
            "startup_timeout_seconds": self.startup_timeout_seconds,
            "unreachable_seconds": self.unreachable_seconds,
        }

    @cached_property
    def hook(self) -> AsyncKubernetesHook:
        return AsyncKubernetesHook(conn_id=self.connection, in_cluster=self.in_cluster)

    async def run(self) -> AsyncIterator[TriggerEvent]:
        clock = asyncio.get_running_loop().time
        started = clock()
        event = await self._watch()
        await asyncio.sleep(max(0.0, started + _LEAST_SECONDS - clock()))
        disruption, retryable = next(iter(self._disruptions.values()), (None, True))
        known = {DISRUPTION: disruption, "spec": self.spec, "uid": self.uid}
        yield TriggerEvent({"message": None, "retryable": retryable, **event, **known})

    async def on_kill(self) -> None:
        """Delete the training: a person cleared or marked the task. Not called when the triggerer stops."""
        kind = WORKLOADS[self.workload].kind
        # All in the body: where there is one, the API server reads nothing else.
        options = V1DeleteOptions(propagation_policy="Foreground", preconditions=V1Preconditions(uid=self.uid))

        async def delete() -> None:
            async with self.hook.get_conn() as client:
                await CustomObjectsApi(client).delete_namespaced_custom_object(
                    kind.group, kind.version, self.namespace, kind.plural, self.name, body=options
                )

        await delete_in_time(self.log, delete, kind.plural, self.name, self.namespace)

    async def _watch(self) -> dict[str, Any]:
        clock = asyncio.get_running_loop().time
        workload, log, unreachable_since = WORKLOADS[self.workload], FollowedLog(self), None
        while True:
            try:
                async with self.hook.get_conn() as client:
                    ended = await self._poll(client, workload, log)
            except StuckError as stuck:
                # Why a pod was removed says more than what that has led to.
                message, retryable = next(iter(self._disruptions.values()), (stuck.message, stuck.retryable))
                return {"status": "stuck", "message": message, "retryable": retryable}
            except (ApiException, KubernetesApiError, ClientError, OSError) as error:
                if isinstance(error, ApiException) and error.status == 404:
                    return {"status": "gone"}
                if isinstance(error, ApiException) and not is_transient(error):
                    return {"status": "unreachable", "message": str(api_error(error, f"watch training {self.name}"))}
                if unreachable_since is None:
                    unreachable_since = clock()
                    self.log.warning(
                        "the Kubernetes API cannot be reached (%s): the training runs meanwhile", describe_error(error)
                    )
                elif clock() - unreachable_since > self.unreachable_seconds:
                    said = f"training {self.name} could not be watched ({describe_error(error)})"
                    return {"status": "unreachable", "message": f"{said}: check the Kubernetes API"}
            else:
                unreachable_since = None
                if ended is not None:
                    return {"status": ended}
            await asyncio.sleep(self.poll_seconds)

    async def _poll(self, client: ApiClient, workload: Workload, log: FollowedLog) -> str | None:
        """Return how the training has ended, or None. Raises StuckError."""
        kind = workload.kind
        training = await CustomObjectsApi(client).get_namespaced_custom_object(
            kind.group, kind.version, self.namespace, kind.plural, self.name
        )
        pods = (
            await CoreV1Api(client).list_namespaced_pod(self.namespace, label_selector=f"{TRAINING}={self.name}")
        ).items
        # Once one is deleted, its controller deletes the others.
        for pod in sorted(pods, key=_deleted):
            if failure := ended_by_cluster(pod, workload.container):
                self._disruptions.setdefault(pod.metadata.name, (str(failure), failure.retryable))
            elif disruption := disruption_of(pod):
                self._disruptions.setdefault(pod.metadata.name, (disruption, True))
            if workload.first.items() <= (pod.metadata.labels or {}).items():
                await log.follow(client, pod, workload.container)
        if (ended := workload.ended(training)) is not None:
            return ended
        for pod in pods:
            if lost(pod) and (disruption := disruption_of(pod)):
                # Its controller waits for this pod, possibly for ever, before it reports the training's end.
                self._disruptions = {pod.metadata.name: (disruption, True)}
                raise StuckError(disruption)
        if training["metadata"].get("deletionTimestamp") is None:
            self._complete = self._complete or len(pods) >= self.nodes
            if not self._complete:
                await self._read_warnings(client, training, workload)
                self._require_pods(len(pods), workload)
            self._require_start(pods, workload)
        return None

    async def _read_warnings(self, client: ApiClient, training: Mapping[str, Any], workload: Workload) -> None:
        """Log what the controllers report about pods that they cannot create, and keep the last of it."""
        warnings: list[Any] = []
        for name in workload.reporters(self.name):
            try:
                selector = f"involvedObject.name={name},type=Warning"
                found = await CoreV1Api(client).list_namespaced_event(self.namespace, field_selector=selector)
            except ApiException as error:
                if error.status != 403:
                    raise
                # The Role of version 0.2 did not have this right, and a training runs without it.
                self._log_warning(str(api_error(error, f"list the events of training {self.name}")))
                return
            warnings += found.items
        # Those of an earlier try's training, which had the same name, outlive it.
        created, refused_since = datetime.fromisoformat(training["metadata"]["creationTimestamp"]), None
        for event in sorted(warnings, key=_last_seen):
            if _last_seen(event) >= created:
                said = " ".join((event.message or "").split()).removeprefix(_COMBINED)
                self._warning = f"{event.reason}: {said}"
                self._log_warning(self._warning)
                self._refusal = refusal(self._warning, self._creating, pods=self.nodes)
                if self._refusal is None or self._refusal.retryable:
                    refused_since = None
                else:
                    refused_since = refused_since or _last_seen(event)
                    self._refused_seconds = _since(refused_since, _last_seen(event))

    @property
    def _creating(self) -> str:
        return f"create all {self.nodes} pods of training {self.name}"

    def _log_warning(self, warning: str) -> None:
        """Log each warning once: the names that differ from one attempt to the next do not count."""
        key = re.sub(r'"[^"]*"', "", warning)
        if key not in self._logged_warnings:
            self._logged_warnings.add(key)
            self.log.warning("training %s: %s", self.name, warning)

    def _require_pods(self, count: int, workload: Workload) -> None:
        """Raise StuckError where the others of the training's pods can never be created, or were not for too long."""
        failure = self._refusal
        # As long as its controller is refused anew: between two tries, what it was refused for may have been corrected.
        if failure is not None and not failure.retryable and self._refused_seconds > STARTUP_FAILURE_SECONDS:
            raise StuckError(str(failure), retryable=False)
        if _since(datetime.fromisoformat(self.since), datetime.now(UTC)) <= self.schedule_timeout_seconds:
            return
        if failure is not None:
            raise StuckError(
                f"{failure} ({count} are there after {self.schedule_timeout_seconds:.0f} s)", failure.retryable
            )
        raise StuckError(
            f"training {self.name} has {count} of its {self.nodes} pods after {self.schedule_timeout_seconds:.0f} s: "
            + (
                f"what keeps the others from being created is {self._warning}"
                if self._warning
                else f"no event says what keeps the others from being created; see that the controller of "
                f"{workload.kind.plural} runs"
            )
        )

    def _require_start(self, pods: list[Any], workload: Workload) -> None:
        """Raise StuckError where one pod has kept the others waiting for too long."""
        now = datetime.now(UTC)
        for pod in pods:
            name = pod.metadata.name
            if pod.status.phase in ("Succeeded", "Failed"):
                continue
            reason = unschedulable(pod)
            if reason is not None and self._unschedulable.get(name) != reason:
                self.log.info("pod %s waits for a node: %s", name, reason)
                self._unschedulable[name] = reason
            if reason is not None and _since(pod.metadata.creation_timestamp, now) > self.schedule_timeout_seconds:
                others = [other.metadata.name for other in pods if other.spec.node_name is not None]
                raise StuckError(
                    f"no node took pod {name} within {self.schedule_timeout_seconds:.0f} s ({reason}), and a "
                    f"training of {self.nodes} nodes needs all of them: "
                    + (f"{', '.join(others)} had one and made room; " if others else "")
                    + "add nodes, free some, or lower finetune.nodes"
                )
            failure = startup_failure(pod, workload.container)
            if failure is None:
                self._failing_since.pop(name, None)
            elif _since(self._failing_since.setdefault(name, now), now) > STARTUP_FAILURE_SECONDS:
                raise StuckError(str(failure), failure.retryable)
            if reason is None and pod.status.phase == "Pending":
                scheduled = next(
                    (c.last_transition_time for c in pod.status.conditions or () if c.type == "PodScheduled"), None
                )
                if scheduled is not None and _since(scheduled, now) > self.startup_timeout_seconds:
                    raise StuckError(
                        f"pod {name} did not start within {self.startup_timeout_seconds:.0f} s: check its node "
                        f"{pod.spec.node_name}, and how long its image takes to pull"
                    )


def _last_seen(event: Any) -> datetime:
    """Return when an event was last seen: controllers fill in different ones of its times."""
    series = event.series.last_observed_time if event.series is not None else None
    return series or event.last_timestamp or event.event_time or event.metadata.creation_timestamp


def _deleted(pod: Any) -> datetime:
    return pod.metadata.deletion_timestamp or datetime.max.replace(tzinfo=UTC)


def _since(then: datetime, now: datetime) -> float:
    return (now - then).total_seconds()


async def first_event(trigger: BaseTrigger) -> dict[str, Any]:
    """Return the payload of a trigger's event, for a task that waits by itself."""
    async for event in trigger.run():
        return event.payload
    raise AssertionError(f"{trigger} ended without an event")
