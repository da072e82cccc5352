"""Watches a training on several nodes: follows node 0's log, and gives up where the nodes do not come together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
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

from operators.kubernetes.pod_failures import ended_by_cluster, fate_of, lost, obstacle, unschedulable
from operators.kubernetes.pod_logs import FollowedLog
from operators.kubernetes.pod_trigger import PATIENCE_SECONDS, delete_in_time, passes
from operators.kubernetes.workloads import FORMS, TRAINING, Form

_LEAST_SECONDS = 5.0
"""See `operators.triggers`: a task that is resumed sooner would be taken for one that failed."""


@dataclass
class StuckError(Exception):
    """The training cannot begin, or go on. Attributes: `retryable`: whether another try can do better."""

    message: str
    retryable: bool = True


class TrainingTrigger(BaseTrigger):
    """Fires once a training has ended, is gone, cannot begin, or has lost a pod together with its node.

    The event is {"status": "succeeded", "failed", "gone", "stuck" or "unreachable", "message", "fate": why a pod of it
    was taken away before the others, "retryable": whether another try can do better, "spec" and "uid": as they were
    given}.

    Args:
        name: of the training. `uid`: of the one that is meant; another may have its name later.
        form: which of them it is. `nodes`: how many pods it has.
        spec: URI of the spec that it works on; handed through.
        connection: Airflow's, of the cluster. `in_cluster`: None leaves it to the connection.
        since: when it was begun (ISO 8601).
        schedule_timeout_seconds: how long a pod may wait for a node while the others hold theirs.
        startup_timeout_seconds: from its node to its start.
        unreachable_seconds: how long the Kubernetes API may be away.
    """

    def __init__(
        self,
        *,
        name: str,
        uid: str | None = None,
        namespace: str,
        form: str,
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
        self.form, self.nodes, self.spec = form, nodes, spec
        self.connection, self.in_cluster, self.since, self.poll_seconds = connection, in_cluster, since, poll_seconds
        self.schedule_timeout_seconds = schedule_timeout_seconds
        self.startup_timeout_seconds = startup_timeout_seconds
        self.unreachable_seconds = unreachable_seconds
        self._fates: dict[str, tuple[str, bool]] = {}
        self._obstacles: dict[str, datetime] = {}
        self._waiting: dict[str, str] = {}
        self._complete = False

    def serialize(self) -> tuple[str, dict[str, Any]]:
        return "operators.kubernetes.training_trigger.TrainingTrigger", {
            "name": self.name,
            "uid": self.uid,
            "namespace": self.namespace,
            "form": self.form,
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
        begun = clock()
        event = await self._watch()
        await asyncio.sleep(max(0.0, begun + _LEAST_SECONDS - clock()))
        fate, retryable = next(iter(self._fates.values()), (None, True))
        known = {"fate": fate, "spec": self.spec, "uid": self.uid}
        yield TriggerEvent({"message": None, "retryable": retryable, **event, **known})

    async def on_kill(self) -> None:
        """A person cleared the task or marked it: the training goes. Stopping the triggerer comes not here."""
        kind = FORMS[self.form].kind
        # All in the body: the API server reads nothing else where there is one.
        options = V1DeleteOptions(propagation_policy="Foreground", preconditions=V1Preconditions(uid=self.uid))

        async def delete() -> None:
            async with self.hook.get_conn() as client:
                await CustomObjectsApi(client).delete_namespaced_custom_object(
                    kind.group, kind.version, self.namespace, kind.plural, self.name, body=options
                )

        await delete_in_time(self.log, delete, kind.plural, self.name, self.namespace)

    async def _watch(self) -> dict[str, Any]:
        clock = asyncio.get_running_loop().time
        form, log, away_since = FORMS[self.form], FollowedLog(self), None
        while True:
            try:
                async with self.hook.get_conn() as client:
                    ended = await self._look(client, form, log)
            except StuckError as stuck:
                # Why a pod was taken away says more than what that has led to.
                words, retryable = next(iter(self._fates.values()), (stuck.message, stuck.retryable))
                return {"status": "stuck", "message": words, "retryable": retryable}
            except (ApiException, KubernetesApiError, ClientError, OSError) as error:
                if isinstance(error, ApiException) and error.status == 404:
                    return {"status": "gone"}
                if isinstance(error, ApiException) and not passes(error):
                    return {"status": "unreachable", "message": f"{error.status}: {error.reason}"}
                if away_since is None:
                    away_since = clock()
                    self.log.warning("the Kubernetes API is away (%s): the training goes on meanwhile", error)
                elif clock() - away_since > self.unreachable_seconds:
                    return {"status": "unreachable", "message": str(error)}
            else:
                away_since = None
                if ended is not None:
                    return {"status": ended}
            await asyncio.sleep(self.poll_seconds)

    async def _look(self, client: ApiClient, form: Form, log: FollowedLog) -> str | None:
        kind = form.kind
        training = await CustomObjectsApi(client).get_namespaced_custom_object(
            kind.group, kind.version, self.namespace, kind.plural, self.name
        )
        pods = (
            await CoreV1Api(client).list_namespaced_pod(self.namespace, label_selector=f"{TRAINING}={self.name}")
        ).items
        # Once one is deleted, its controller deletes the others.
        for pod in sorted(pods, key=_deleted):
            if fate := ended_by_cluster(pod, form.container):
                self._fates.setdefault(pod.metadata.name, (str(fate), fate.retryable))
            elif words := fate_of(pod):
                self._fates.setdefault(pod.metadata.name, (words, True))
            if form.first.items() <= (pod.metadata.labels or {}).items():
                await log.follow(client, pod, form.container)
        if (ended := form.ended(training)) is not None:
            return ended
        for pod in pods:
            if lost(pod) and (words := fate_of(pod)):
                # The controller tells of no end while it waits for this one, which it may do for ever.
                self._fates = {pod.metadata.name: (words, True)}
                raise StuckError(words)
        if training["metadata"].get("deletionTimestamp") is None:
            self._require_beginning(pods, form)
        return None

    def _require_beginning(self, pods: list[Any], form: Form) -> None:
        """All nodes or none: raises StuckError where one has kept the others waiting for too long."""
        now = datetime.now(UTC)
        self._complete = self._complete or len(pods) >= self.nodes
        if not self._complete and _since(datetime.fromisoformat(self.since), now) > self.schedule_timeout_seconds:
            raise StuckError(
                f"training {self.name} has {len(pods)} of its {self.nodes} pods after "
                f"{self.schedule_timeout_seconds:.0f} s: `kubectl describe {form.kind.plural}/{self.name}` says what "
                "keeps the others from being made (a quota, a policy, a controller that is away)"
            )
        for pod in pods:
            name = pod.metadata.name
            if pod.status.phase in ("Succeeded", "Failed"):
                continue
            waits_for = unschedulable(pod)
            if waits_for is not None and self._waiting.get(name) != waits_for:
                self.log.info("pod %s waits for a node: %s", name, waits_for)
                self._waiting[name] = waits_for
            if waits_for is not None and _since(pod.metadata.creation_timestamp, now) > self.schedule_timeout_seconds:
                others = sum(other.spec.node_name is not None for other in pods)
                raise StuckError(
                    f"no node took pod {name} within {self.schedule_timeout_seconds:.0f} s ({waits_for}), and a "
                    f"training of {self.nodes} nodes needs all of them: the {others} that had one were let go; add "
                    "nodes, free some, or lower finetune.nodes"
                )
            found = obstacle(pod, form.container)
            if found is None:
                self._obstacles.pop(name, None)
            elif _since(self._obstacles.setdefault(name, now), now) > PATIENCE_SECONDS:
                raise StuckError(str(found), found.retryable)
            if waits_for is None and pod.status.phase == "Pending":
                scheduled = next(
                    (c.last_transition_time for c in pod.status.conditions or () if c.type == "PodScheduled"), None
                )
                if scheduled is not None and _since(scheduled, now) > self.startup_timeout_seconds:
                    raise StuckError(
                        f"pod {name} did not start within {self.startup_timeout_seconds:.0f} s: see to its node "
                        f"{pod.spec.node_name}, and to how long its image takes"
                    )


def _deleted(pod: Any) -> datetime:
    return pod.metadata.deletion_timestamp or datetime.max.replace(tzinfo=UTC)


def _since(then: datetime, now: datetime) -> float:
    return (now - then).total_seconds()


async def first_event(trigger: BaseTrigger) -> dict[str, Any]:
    """What a trigger fires with, for a task that waits by itself."""
    async for event in trigger.run():
        return event.payload
    raise AssertionError(f"{trigger} ended without an event")
