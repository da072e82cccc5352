"""Why a pod failed, and whether another try can succeed: from the pod's status, and from the API's errors.

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

from kubernetes.utils.quantity import parse_quantity

from include.errors import ExitCode
from include.job_environment import ERROR_PREFIX
from include.job_plan import JobFailedError
from include.specs import job_names, spec_class
from include.specs.base import JobSpec
from operators.kubernetes.pod_spec import CONTAINER, JOB_LABEL

OVERDUE_SECONDS = 60.0
"""How long after its grace period a pod may still be there before its node counts as lost."""

_SELF_EXPLAINED = set(ExitCode) - {ExitCode.KILLED, ExitCode.STOPPED}
"""A job that ends with one of these says why itself, whatever happened to its pod afterwards."""

_NEXT = "the next try continues from what this one has saved"

_NO_IMAGE = {"ErrImagePull", "ImagePullBackOff", "RegistryUnavailable", "ImageInspectError"}
_WRONG_IMAGE = {"InvalidImageName", "ErrImageNeverPull"}
_NO_CONTAINER = {"CreateContainerError", "RunContainerError", "CreatePodSandboxError"}
_IMAGE_IS_WRONG = re.compile(
    r"not found|manifest unknown|does not exist|no such image|unauthorized|denied|forbidden|"
    r"authentication required|invalid reference|no match for platform",
    re.IGNORECASE,
)
"""In the answer of a registry or a runtime: asking again does not change it."""

_DISRUPTIONS = {
    "PreemptionByScheduler": "was preempted by a pod of a higher priority",
    "DeletionByTaintManager": "was evicted from its node, which is unreachable or was tainted",
    "EvictionByEvictionAPI": "was evicted from its node, which is being drained",
    "DeletionByPodGC": "was lost together with its node",
    "TerminationByKubelet": "was ended by its node, which ran short of something or is shutting down",
}
_NODE_REASONS = {
    "NodeLost": "was lost together with its node",
    "NodeShutdown": "was ended by its node, which is shutting down",
    "Shutdown": "was ended by its node, which is shutting down",
    "Terminated": "was ended by its node, which is shutting down",
    "Preempting": "was preempted on its node by a critical pod",
    "SystemOOM": "was ended because its node, and not only the pod, ran out of memory",
}
_QUOTA = re.compile(r"requested: (\S+), used: \S+, limited: (\S+)")
_NO_SERVICE_ACCOUNT = re.compile(r'service ?account "[^"]*" not found|looking up service ?account', re.IGNORECASE)
_NOT_ADMITTED = re.compile(r"OutOf\w+|UnexpectedAdmissionError|NodeAffinity|NodeName|.*Affinity.*|AppArmor|Sysctl.*")


def exit_of(pod: Any, container: str = CONTAINER) -> tuple[int, str | None] | None:
    """Return the container's exit code and the job's own error message, if it left one; None: it has not ended."""
    ended = _state(pod, container, "terminated")
    return None if ended is None else (ended.exit_code, _failure_message(ended.message))


def startup_failure(pod: Any, container: str = CONTAINER) -> JobFailedError | None:
    """Return what keeps the container of a scheduled pod from starting; None where it is only still starting."""
    waiting = _state(pod, container, "waiting")
    if waiting is None:
        return None
    name, reason, message = pod.metadata.name, waiting.reason, _one_line(waiting.message)
    image = next((found.image for found in pod.spec.containers if found.name == container), "?")
    if reason in _WRONG_IMAGE or (reason in _NO_IMAGE and _IMAGE_IS_WRONG.search(message)):
        return JobFailedError(
            f"the image {image} cannot be pulled ({reason}: {message}): push it, or name another in the platform's "
            "cluster.images; a private registry needs cluster.image_pull_secrets",
            retryable=False,
        )
    if reason in _NO_IMAGE:
        return JobFailedError(
            f"the image {image} could not be pulled ({reason}: {message}): see whether the nodes reach the registry",
            retryable=True,
        )
    if reason == "CreateContainerConfigError":
        return JobFailedError(
            f"pod {name} cannot be started ({message or reason}): create the Secret, ConfigMap or key that is missing, "
            "or take it out of the platform's cluster section",
            retryable=False,
        )
    if reason in _NO_CONTAINER:
        return JobFailedError(
            f"pod {name} cannot be started ({reason}: {message}): check its node and the image {image}", retryable=True
        )
    return None


def unschedulable(pod: Any) -> str | None:
    """Return the scheduler's message on why no node takes the pod; None where one has."""
    condition = _condition(pod, "PodScheduled")
    if condition is None or condition.status == "True":
        return None
    return _one_line(condition.message) or condition.reason or "the scheduler has not seen it yet"


def ended_by_cluster(pod: Any, container: str = CONTAINER) -> JobFailedError | None:
    """Return what Kubernetes did to a pod that did not end by itself; None where its exit code says everything."""
    ended = _state(pod, container, "terminated")
    if ended is not None and ended.exit_code in _SELF_EXPLAINED:
        return None
    name, reason, message = pod.metadata.name, pod.status.reason, _one_line(pod.status.message)
    node = f" {pod.spec.node_name}" if pod.spec.node_name else ""
    if reason == "DeadlineExceeded":
        return JobFailedError(
            f"pod {name} ran longer than its deadline ({message}): give the task more time, or the job less to do",
            retryable=False,
        )
    if reason == "Evicted" and re.search(r"exceeds the (total )?limit", message):
        return JobFailedError(
            f"pod {name} was evicted because it wrote more than it may ({message}): give its size more scratch in the "
            "platform's cluster.sizes",
            retryable=False,
        )
    if reason == "Evicted":
        return JobFailedError(
            f"pod {name} was evicted from its node{node}, which ran short ({message or 'of something'}): {_NEXT}; "
            "if it happens again, check the node, or let the pod request what it uses",
            retryable=True,
        )
    if ended is not None and ended.reason == "OOMKilled":
        limit = next((found.resources.limits or {} for found in pod.spec.containers if found.name == container), {})
        job = (pod.metadata.labels or {}).get(JOB_LABEL)
        spec = spec_class(job) if job in job_names() else JobSpec
        return JobFailedError(
            f"pod {name} ran out of memory (limit {limit.get('memory', 'none')}, the volume at /dev/shm included): "
            + spec.more_memory("give its size more memory in the platform's cluster.sizes"),
            retryable=False,
        )
    if ended is not None and ended.reason in ("ContainerCannotRun", "StartError"):
        return JobFailedError(
            f"pod {name} cannot run its command ({_one_line(ended.message)}): the image has to hold the job's code and "
            "its python on PATH",
            retryable=False,
        )
    if disruption := disruption_of(pod):
        return JobFailedError(disruption, retryable=True)
    if reason in _NODE_REASONS:
        return JobFailedError(
            f"pod {name} {_NODE_REASONS[reason]}{node and f' ({node.strip()})'}: {_NEXT}", retryable=True
        )
    if pod.status.phase == "Failed" and ended is None and reason and _NOT_ADMITTED.fullmatch(reason):
        return JobFailedError(
            f"the node{node} did not take pod {name} after all ({reason}: {message}): the next try asks for another",
            retryable=True,
        )
    if pod.status.phase == "Failed" and ended is None:
        return JobFailedError(
            f"pod {name} failed before its container ran ({reason or 'no reason'}: {message}): check its node{node}",
            retryable=True,
        )
    return None


def disruption_of(pod: Any, now: datetime | None = None) -> str | None:
    """Return why a pod is being removed, as long as it is still there to say so; None where nobody removes it."""
    name = pod.metadata.name
    condition = _condition(pod, "DisruptionTarget")
    node = f" (node {pod.spec.node_name})" if pod.spec.node_name else ""
    if lost(pod, now):
        return (
            f"pod {name} should have ended by {pod.metadata.deletion_timestamp:%H:%M:%S} UTC and its node"
            f"{' ' + pod.spec.node_name if pod.spec.node_name else ''} does not answer: check the node; once it is "
            f"certainly off, `kubectl delete pod {name} --force` lets the next try begin"
        )
    if _disrupted(pod):
        event = _DISRUPTIONS.get(
            condition.reason, f"was taken away ({condition.reason}: {_one_line(condition.message)})"
        )
        return f"pod {name} {event}{node}: {_NEXT}"
    if pod.metadata.deletion_timestamp is not None:
        return f"pod {name} was deleted, by hand or by the cluster{node}: {_NEXT}"
    return None


def overdue(pod: Any, now: datetime | None = None) -> bool:
    """Return whether a pod that is being deleted has outlived its grace period and `OVERDUE_SECONDS`."""
    end = pod.metadata.deletion_timestamp
    return end is not None and ((now or datetime.now(UTC)) - end).total_seconds() > OVERDUE_SECONDS


def lost(pod: Any, now: datetime | None = None) -> bool:
    """Return whether a pod is overdue and has not ended either: its node is lost, and nobody will report its end."""
    return overdue(pod, now) and pod.status.phase not in ("Succeeded", "Failed")


def failed_first(pods: Iterable[Any], container: str = CONTAINER) -> list[Any]:
    """Return those of a training's pods that did not end well, the one whose end says why first.

    That is the first that ended by itself, then one that the cluster removed; the others are consequences.
    """

    def order(pod: Any) -> tuple[int, str]:
        ended = _state(pod, container, "terminated")
        when = str(ended.finished_at) if ended is not None else "9"
        return (2 if is_consequence(pod, container) else 1 if _disrupted(pod) else 0), when

    def failed(pod: Any) -> bool:
        ended = exit_of(pod, container)
        return ended is None or ended[0] != ExitCode.OK

    return sorted(filter(failed, pods), key=order)


def is_consequence(pod: Any, container: str = CONTAINER) -> bool:
    """Return whether one of a training's pods ended only because another had, or has not ended at all."""
    ended = _state(pod, container, "terminated")
    return not _disrupted(pod) and (ended is None or ended.exit_code == ExitCode.STOPPED)


def pod_gone(name: str, disruption: str | None) -> JobFailedError:
    """Return the error for a pod that does not exist any more. `disruption`: why it was being removed, if known."""
    return JobFailedError(
        disruption or f"pod {name} is gone, and nobody saw it end: it was deleted by hand, or with its node; {_NEXT}",
        retryable=True,
    )


def api_error(error: Any, action: str) -> JobFailedError:
    """Return the error for a request that the Kubernetes API refused, or failed at.

    Args:
        error: ApiException of either client.
        action: what was requested, as in "create pod x".
    """
    message = _message(error)
    status = error.status or 0
    if status in (0, 408, 429) or status >= 500:
        if "webhook" in message:
            return JobFailedError(
                f"a webhook of the cluster does not answer ({message}): check it; nothing was created", retryable=True
            )
        return JobFailedError(f"the Kubernetes API could not {action} ({status}: {message}): check it", retryable=True)
    if status == 401:
        return JobFailedError(
            f"the Kubernetes API does not know who asks to {action} ({message}): renew the credentials of Airflow's "
            "connection",
            retryable=True,
        )
    if failure := refusal(message, action):
        return failure
    if status == 403:
        return JobFailedError(
            f"Airflow may not {action} ({message}): give its service account the Role in include/deploy/kubernetes",
            retryable=False,
        )
    if status == 404:
        return JobFailedError(
            f"the cluster cannot {action} ({message}): create the namespace, or name another", retryable=False
        )
    return JobFailedError(
        f"the Kubernetes API refuses to {action} ({status}: {message}): correct the platform's cluster section",
        retryable=status == 409,
    )


def refusal(message: str, action: str, *, pods: int = 1) -> JobFailedError | None:
    """Return the error for what admission says to a new pod; None where it says nothing that is known here.

    Args:
        message: the API server's, as a client gets it, or as a controller repeats it in an event.
        action: what was requested, as in "create pod x".
        pods: how many of the kind are needed at once.
    """
    if "exceeded quota" in message:
        if _exceeds_hard_limit(message, pods):
            remedy = "raise the quota, or request less in the platform's cluster.sizes"
            if pods > 1:
                remedy = "raise the quota, or lower finetune.nodes"
            return JobFailedError(
                f"the namespace's quota can never allow to {action} ({message}): {remedy}", retryable=False
            )
        return JobFailedError(
            f"the namespace's quota does not allow to {action} ({message}): wait for others to end, or raise the quota",
            retryable=True,
        )
    if "violates PodSecurity" in message:
        return JobFailedError(
            f"the namespace's Pod Security refuses to {action} ({message}): change the platform's "
            "cluster.pod_template, or the namespace's level",
            retryable=False,
        )
    if "admission webhook" in message or "ValidatingAdmissionPolicy" in message:
        return JobFailedError(
            f"a policy of the cluster refuses to {action} ({message}): change the platform's cluster section, or "
            "the policy",
            retryable=False,
        )
    if "priority class" in message.lower() or "priorityclass" in message.lower():
        return JobFailedError(
            f"the cluster cannot {action} ({message}): create the PriorityClass, or take it from the size in "
            "cluster.sizes",
            retryable=False,
        )
    if _NO_SERVICE_ACCOUNT.search(message):
        return JobFailedError(
            f"the cluster cannot {action} ({message}): create the service account, or name another in "
            "cluster.service_account",
            retryable=False,
        )
    return None


def _exceeds_hard_limit(message: str, pods: int) -> bool:
    """Return whether so many pods exceed a quota that nothing else uses.

    Source of the format: plugin/pkg/admission/resourcequota/controller.go, checkRequest.
    """
    found = _QUOTA.search(message)
    if found is None:
        return False
    try:
        requested, limited = (
            {name: parse_quantity(amount) for name, _, amount in (one.partition("=") for one in group.split(","))}
            for group in found.groups()
        )
    except ValueError:
        return False
    return any(pods * amount > limited[name] for name, amount in requested.items() if name in limited)


def api_unavailable(error: BaseException, action: str) -> JobFailedError:
    """Return the error for a Kubernetes API that does not answer."""
    return JobFailedError(
        f"the Kubernetes API did not answer when asked to {action} ({_one_line(str(error))[:300]}): check it; a pod "
        "that runs continues meanwhile, and the next try adopts it",
        retryable=True,
    )


def describe_error(error: Any) -> str:
    """Return an error of either client on one line: status and message, without the response's headers."""
    if not hasattr(error, "status"):
        return _one_line(str(error)) or type(error).__name__
    return f"{error.status} {error.reason}: {_message(error)}" if error.body else f"{error.status} {error.reason}"


def _state(pod: Any, container: str, kind: str) -> Any:
    statuses = (pod.status and pod.status.container_statuses) or ()
    status = next((found for found in statuses if found.name == container), None)
    return getattr(status.state, kind) if status is not None and status.state is not None else None


def _condition(pod: Any, kind: str) -> Any:
    return next((found for found in (pod.status and pod.status.conditions) or () if found.type == kind), None)


def _disrupted(pod: Any) -> bool:
    condition = _condition(pod, "DisruptionTarget")
    return condition is not None and condition.status == "True"


def _failure_message(termination_message: str | None) -> str | None:
    """Return the job's error message: the termination message, or of the log's end the last error or line."""
    lines = [line.strip() for line in (termination_message or "").splitlines() if line.strip()]
    errors = [line.removeprefix(ERROR_PREFIX) for line in lines if line.startswith(ERROR_PREFIX)]
    found = errors or lines
    return found[-1] if found else None


def _message(error: Any) -> str:
    """Return the API server's own message."""
    try:
        return _one_line(json.loads(error.body)["message"])
    except (TypeError, ValueError, KeyError):
        return _one_line(str(error.body or error.reason or error))[:500]


def _one_line(text: str | None) -> str:
    return " ".join((text or "").split())
