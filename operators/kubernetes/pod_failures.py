"""What became of a pod, in one sentence, and whether another one can do better.

Reads pods of both Kubernetes clients, the blocking one and the asynchronous. Sources: the reasons that kubelet, the
scheduler and the API server write (kubernetes 1.30–1.34: pkg/kubelet/{eviction,images,container,nodeshutdown},
api/core/v1: DisruptionTarget).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from include.errors import ExitCode
from include.job_plan import JobFailedError
from operators.kubernetes.pod_spec import CONTAINER

OVERDUE_SECONDS = 60.0
"""How long after its grace a pod may still be there before its node is taken for lost."""

_ERROR = "error: "

_OWN_ENDS = set(ExitCode) - {ExitCode.KILLED, ExitCode.STOPPED}
"""A job that ends with one of these says why itself, whatever became of its pod afterwards."""

_NEXT = "the next try goes on where this one has saved"

_NO_IMAGE = {"ErrImagePull", "ImagePullBackOff", "RegistryUnavailable", "ImageInspectError"}
_WRONG_IMAGE = {"InvalidImageName", "ErrImageNeverPull"}
_NO_CONTAINER = {"CreateContainerError", "RunContainerError", "CreatePodSandboxError"}
_IMAGE_IS_WRONG = re.compile(
    r"not found|manifest unknown|does not exist|no such image|unauthorized|denied|forbidden|"
    r"authentication required|invalid reference|no match for platform",
    re.IGNORECASE,
)
"""In a registry's answer, or a runtime's: what asking again does not change."""

_DISRUPTIONS = {
    "PreemptionByScheduler": "made room for a pod of a higher priority",
    "DeletionByTaintManager": "had to leave its node, which is away or was tainted",
    "EvictionByEvictionAPI": "had to leave its node, which is being drained",
    "DeletionByPodGC": "was lost together with its node",
    "TerminationByKubelet": "was ended by its node, which ran short of something or is shutting down",
}
_NODE_REASONS = {
    "NodeLost": "was lost together with its node",
    "NodeShutdown": "was ended by its node, which is shutting down",
    "Shutdown": "was ended by its node, which is shutting down",
    "Terminated": "was ended by its node, which is shutting down",
    "Preempting": "made room on its node for a pod that the cluster cannot do without",
    "SystemOOM": "was ended because its node, and not only the pod, ran out of memory",
}
_NOT_ADMITTED = re.compile(r"OutOf\w+|UnexpectedAdmissionError|NodeAffinity|NodeName|.*Affinity.*|AppArmor|Sysctl.*")


def exit_of(pod: Any, container: str = CONTAINER) -> tuple[int, str | None] | None:
    """Exit code of the container and the job's own last sentence, if it left one; None: it has not ended."""
    ended = _state(pod, container, "terminated")
    return None if ended is None else (ended.exit_code, _sentence(ended.message))


def obstacle(pod: Any, container: str = CONTAINER) -> JobFailedError | None:
    """What keeps the container of a pod that has a node from starting; None where it only takes its time."""
    waiting = _state(pod, container, "waiting")
    if waiting is None:
        return None
    name, reason, said = pod.metadata.name, waiting.reason, _one_line(waiting.message)
    image = next((found.image for found in pod.spec.containers if found.name == container), "?")
    if reason in _WRONG_IMAGE or (reason in _NO_IMAGE and _IMAGE_IS_WRONG.search(said)):
        return JobFailedError(
            f"the image {image} cannot be had ({reason}: {said}): put it there, or name another in the platform's "
            "cluster.images; a private registry wants cluster.image_pull_secrets",
            retryable=False,
        )
    if reason in _NO_IMAGE:
        return JobFailedError(
            f"the image {image} could not be pulled ({reason}: {said}): see whether the nodes reach the registry",
            retryable=True,
        )
    if reason == "CreateContainerConfigError":
        return JobFailedError(
            f"pod {name} cannot be started ({said or reason}): make the Secret, ConfigMap or key that is missing, or "
            "take it out of the platform's cluster section",
            retryable=False,
        )
    if reason in _NO_CONTAINER:
        return JobFailedError(
            f"pod {name} cannot be started ({reason}: {said}): see to its node and the image {image}", retryable=True
        )
    return None


def unschedulable(pod: Any) -> str | None:
    """The scheduler's words on why no node takes the pod; None where one has."""
    condition = _condition(pod, "PodScheduled")
    if condition is None or condition.status == "True":
        return None
    return _one_line(condition.message) or condition.reason or "the scheduler has not looked at it yet"


def ended_by_cluster(pod: Any, container: str = CONTAINER) -> JobFailedError | None:
    """What Kubernetes did to a pod that did not end by itself; None where its own end tells everything."""
    ended = _state(pod, container, "terminated")
    if ended is not None and ended.exit_code in _OWN_ENDS:
        return None
    name, reason, said = pod.metadata.name, pod.status.reason, _one_line(pod.status.message)
    node = f" {pod.spec.node_name}" if pod.spec.node_name else ""
    if reason == "DeadlineExceeded":
        return JobFailedError(
            f"pod {name} ran longer than its deadline ({said}): give the task more time, or the job less to do",
            retryable=False,
        )
    if reason == "Evicted" and re.search(r"exceeds the (total )?limit", said):
        return JobFailedError(
            f"pod {name} was evicted because it wrote more than it may ({said}): give its size more scratch in the "
            "platform's cluster.sizes",
            retryable=False,
        )
    if reason == "Evicted":
        return JobFailedError(
            f"pod {name} was evicted from its node{node}, which ran short ({said or 'of something'}): {_NEXT}; "
            "if it happens again, see to the node, or let the pod ask for what it uses",
            retryable=True,
        )
    if ended is not None and ended.reason == "OOMKilled":
        limit = next((found.resources.limits or {} for found in pod.spec.containers if found.name == container), {})
        return JobFailedError(
            f"pod {name} ran out of memory (limit {limit.get('memory', 'none')}, the volume at /dev/shm included): "
            "lower the job's batch size, or give its size more memory in the platform's cluster.sizes",
            retryable=False,
        )
    if ended is not None and ended.reason in ("ContainerCannotRun", "StartError"):
        return JobFailedError(
            f"pod {name} cannot run its command ({_one_line(ended.message)}): the image has to hold the job's code and "
            "its python on PATH",
            retryable=False,
        )
    if fate := fate_of(pod):
        return JobFailedError(fate, retryable=True)
    if reason in _NODE_REASONS:
        return JobFailedError(
            f"pod {name} {_NODE_REASONS[reason]}{node and f' ({node.strip()})'}: {_NEXT}", retryable=True
        )
    if pod.status.phase == "Failed" and ended is None and reason and _NOT_ADMITTED.fullmatch(reason):
        return JobFailedError(
            f"the node{node} did not take pod {name} after all ({reason}: {said}): the next try asks for another",
            retryable=True,
        )
    if pod.status.phase == "Failed" and ended is None:
        return JobFailedError(
            f"pod {name} failed before its container ran ({reason or 'no reason'}: {said}): see to its node{node}",
            retryable=True,
        )
    return None


def fate_of(pod: Any, now: datetime | None = None) -> str | None:
    """Why a pod is being taken away, while it is still there to say so; None where nobody takes it away."""
    name = pod.metadata.name
    condition = _condition(pod, "DisruptionTarget")
    node = f" (node {pod.spec.node_name})" if pod.spec.node_name else ""
    if lost(pod, now):
        return (
            f"pod {name} should have ended by {pod.metadata.deletion_timestamp:%H:%M:%S} UTC and its node"
            f"{' ' + pod.spec.node_name if pod.spec.node_name else ''} does not answer: see to the node; once it is "
            f"certainly off, `kubectl delete pod {name} --force` lets the next try begin"
        )
    if _disrupted(pod):
        what = _DISRUPTIONS.get(
            condition.reason, f"was taken away ({condition.reason}: {_one_line(condition.message)})"
        )
        return f"pod {name} {what}{node}: {_NEXT}"
    if pod.metadata.deletion_timestamp is not None:
        return f"pod {name} was deleted, by hand or by the cluster{node}: {_NEXT}"
    return None


def overdue(pod: Any, now: datetime | None = None) -> bool:
    """Whether a pod that is being deleted has outlived its grace, and its node's time to say so."""
    end = pod.metadata.deletion_timestamp
    return end is not None and ((now or datetime.now(UTC)) - end).total_seconds() > OVERDUE_SECONDS


def lost(pod: Any, now: datetime | None = None) -> bool:
    """Whether a pod is overdue that has not ended either: nobody will ever tell how it did."""
    return overdue(pod, now) and pod.status.phase not in ("Succeeded", "Failed")


def failed_first(pods: Iterable[Any], container: str = CONTAINER) -> list[Any]:
    """Of pods that work together, those that did not end well: first the one whose end says why.

    That is the first that ended by itself, then one that the cluster took; the rest only followed.
    """

    def weight(pod: Any) -> tuple[int, str]:
        ended = _state(pod, container, "terminated")
        when = str(ended.finished_at) if ended is not None else "9"
        return (2 if followed(pod, container) else 1 if _disrupted(pod) else 0), when

    return sorted((pod for pod in pods if (exit_of(pod, container) or (None,))[0] != ExitCode.OK), key=weight)


def followed(pod: Any, container: str = CONTAINER) -> bool:
    """Whether a pod of several only ended because another had, or has not ended at all."""
    ended = _state(pod, container, "terminated")
    return not _disrupted(pod) and (ended is None or ended.exit_code == ExitCode.STOPPED)


def gone(name: str, fate: str | None) -> JobFailedError:
    """For a pod that is not there any more. `fate`: what was last seen of it."""
    return JobFailedError(
        fate or f"pod {name} is gone, and nobody saw it end: it was deleted by hand, or with its node; {_NEXT}",
        retryable=True,
    )


def refused(error: Any, what: str) -> JobFailedError:
    """For an answer of the Kubernetes API other than yes.

    Args:
        error: ApiException of either client. `what`: that was asked for, as in "make pod x".
    """
    said = _said(error)
    status = error.status or 0
    if status in (0, 408, 429) or status >= 500:
        if "webhook" in said:
            return JobFailedError(
                f"a webhook of the cluster is away ({said}): see to it; nothing was made", retryable=True
            )
        return JobFailedError(f"the Kubernetes API could not {what} ({status}: {said}): see to it", retryable=True)
    if status == 401:
        return JobFailedError(
            f"the Kubernetes API does not know who asks to {what} ({said}): renew the credentials of Airflow's "
            "connection",
            retryable=True,
        )
    if "exceeded quota" in said:
        return JobFailedError(
            f"the namespace's quota does not allow to {what} ({said}): wait for others to end, or raise the quota",
            retryable=True,
        )
    if "violates PodSecurity" in said:
        return JobFailedError(
            f"the namespace's Pod Security refuses to {what} ({said}): change the platform's cluster.pod_template, or "
            "the namespace's level",
            retryable=False,
        )
    if "admission webhook" in said or "ValidatingAdmissionPolicy" in said:
        return JobFailedError(
            f"a policy of the cluster refuses to {what} ({said}): change the platform's cluster section, or the policy",
            retryable=False,
        )
    if "priority class" in said.lower() or "priorityclass" in said.lower():
        return JobFailedError(
            f"the cluster cannot {what} ({said}): make the PriorityClass, or take it from the size", retryable=False
        )
    if "serviceaccount" in said.lower():
        return JobFailedError(
            f"the cluster cannot {what} ({said}): make the service account, or name another in cluster.service_account",
            retryable=False,
        )
    if status == 403:
        return JobFailedError(
            f"Airflow may not {what} ({said}): give its service account the Role in include/deploy/kubernetes",
            retryable=False,
        )
    if status == 404:
        return JobFailedError(
            f"the cluster cannot {what} ({said}): make the namespace, or name another", retryable=False
        )
    return JobFailedError(
        f"the Kubernetes API refuses to {what} ({status}: {said}): mend the platform's cluster section",
        retryable=status == 409,
    )


def away(error: BaseException, what: str) -> JobFailedError:
    """For a Kubernetes API that gives no answer at all."""
    return JobFailedError(
        f"the Kubernetes API is away, which was asked to {what} ({_one_line(str(error))[:300]}): see to it; a pod that "
        "runs goes on meanwhile, and the next try adopts it",
        retryable=True,
    )


def _state(pod: Any, container: str, kind: str) -> Any:
    statuses = (pod.status and pod.status.container_statuses) or ()
    status = next((found for found in statuses if found.name == container), None)
    return getattr(status.state, kind) if status is not None and status.state is not None else None


def _condition(pod: Any, kind: str) -> Any:
    return next((found for found in (pod.status and pod.status.conditions) or () if found.type == kind), None)


def _disrupted(pod: Any) -> bool:
    condition = _condition(pod, "DisruptionTarget")
    return condition is not None and condition.status == "True"


def _sentence(message: str | None) -> str | None:
    """Of a termination message, which is the job's sentence, or the end of its log where it left none."""
    lines = [line.strip() for line in (message or "").splitlines() if line.strip()]
    named = [line.removeprefix(_ERROR) for line in lines if line.startswith(_ERROR)]
    return (named or lines or [None])[-1]


def _said(error: Any) -> str:
    try:
        return _one_line(json.loads(error.body)["message"])
    except (TypeError, ValueError, KeyError):
        return _one_line(str(error.body or error.reason or error))[:500]


def _one_line(text: str | None) -> str:
    return " ".join((text or "").split())
