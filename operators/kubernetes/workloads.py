"""Workloads that train on several nodes, made from the pod of one node: three kinds, as plain data.

- `job`: an Indexed Job and a headless Service, which need no controller beside Kubernetes' own.
- `trainjob`: Kubeflow Trainer v2 (`trainer.kubeflow.org/v1alpha1`, v2.3), with a TrainingRuntime of its own: a TrainJob
  alone can set neither its pods' priority class nor how often a failed pod is replaced.
- `pytorchjob`: Kubeflow's former PyTorchJob (`kubeflow.org/v1`, training-operator 1.9).

In all of them one node is one pod, which finds its rank and node 0's address in `PET_*`. A pod that fails is not
replaced, since the others cannot continue without it: the operator's next try starts all of them again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

from include.job_environment import MASTER_ADDRESS, MASTER_PORT, NODE_RANK, NODES
from operators.kubernetes.pod_spec import CONTAINER, SPEC_ANNOTATION

TRAINING = "anemone/training"
"""Label of every object of one training; its value is the training's name."""

PORT = 29500
"""Of node 0, below the range of outgoing connections; the ports after it are those of its ranks."""

_INDEX = "batch.kubernetes.io/job-completion-index"
_TTL_SECONDS = 7 * 24 * 3600
"""How long a finished training stays that no task deletes; it holds no node."""


@dataclass(frozen=True)
class Kind:
    """A kind of objects, as paths of the API server name it."""

    group: str
    version: str
    plural: str


@dataclass(frozen=True)
class Workload:
    """One way to train on several nodes.

    Attributes:
        name: `cluster.training` of a platform.
        kind: of the training's main object; deleting that deletes all others.
        container: the name that the pods' container has to have.
        first: labels of node 0's pod, beside `TRAINING`.
        reporters: return the names of the objects whose events say why a pod is not created.
        succeeded, failed: types of the main object's conditions at its end.
        before, after: return the other objects, to be created before and after the main one.
    """

    name: str
    kind: Kind
    container: str
    _main: Callable[[str, dict[str, Any], int, int], dict[str, Any]]
    reporters: Callable[[str], tuple[str, ...]] = lambda name: (name,)
    first: Mapping[str, str] = field(default_factory=lambda: {_INDEX: "0"})
    succeeded: str = "Complete"
    failed: str = "Failed"
    before: Callable[[str, dict[str, Any]], list[tuple[Kind, dict[str, Any]]]] = lambda _name, _pod: []
    after: Callable[[str, dict[str, Any]], list[tuple[Kind, dict[str, Any]]]] = lambda _name, _pod: []

    def pod(self, name: str, pod: Mapping[str, Any]) -> dict[str, Any]:
        """Return a template of one node's pod, with the container's name and the training's label."""
        template = {"metadata": deepcopy(pod["metadata"]), "spec": deepcopy(pod["spec"])}
        for key in ("name", "namespace"):
            template["metadata"].pop(key, None)
        template["metadata"].setdefault("labels", {})[TRAINING] = name
        container = next(found for found in template["spec"]["containers"] if found["name"] == CONTAINER)
        container["name"] = self.container
        return template

    def render(self, name: str, template: dict[str, Any], *, nodes: int, processes: int) -> dict[str, Any]:
        """Return the main object. `template`: what `pod` returned; `processes`: of one node."""
        return {**self._main(name, template, nodes, processes), "metadata": _metadata(name, template)}

    def ended(self, training: Mapping[str, Any]) -> str | None:
        """Return `succeeded`, `failed`, or None as long as the training runs."""
        conditions = {found["type"]: found for found in training.get("status", {}).get("conditions", ())}
        for outcome, condition in (("succeeded", self.succeeded), ("failed", self.failed)):
            if conditions.get(condition, {}).get("status") == "True":
                return outcome
        return None

    def reason(self, training: Mapping[str, Any]) -> str:
        """Return what the cluster reports about the failure."""
        for found in training.get("status", {}).get("conditions", ()):
            if found["type"] == self.failed and found.get("status") == "True":
                return ": ".join(filter(None, (found.get("reason"), found.get("message"))))
        return "no reason given"


def _metadata(name: str, template: Mapping[str, Any]) -> dict[str, Any]:
    annotations = template["metadata"].get("annotations", {})
    metadata = {"name": name, "labels": dict(template["metadata"]["labels"])}
    if SPEC_ANNOTATION in annotations:
        metadata["annotations"] = {SPEC_ANNOTATION: annotations[SPEC_ANNOTATION]}
    return metadata


def _job(name: str, template: dict[str, Any], nodes: int, _processes: int) -> dict[str, Any]:
    template = deepcopy(template)
    template["spec"] |= {"restartPolicy": "Never", "subdomain": name}
    rendezvous = [
        {"name": NODES, "value": str(nodes)},
        {"name": NODE_RANK, "valueFrom": {"fieldRef": {"fieldPath": f"metadata.annotations['{_INDEX}']"}}},
        {"name": MASTER_ADDRESS, "value": f"{name}-0.{name}"},
        {"name": MASTER_PORT, "value": str(PORT)},
    ]
    container = next(found for found in template["spec"]["containers"] if found["name"] == CONTAINER)
    container["env"] = [*container.get("env", []), *rendezvous]
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "spec": {
            "completionMode": "Indexed",
            "completions": nodes,
            "parallelism": nodes,
            "backoffLimit": 0,
            "podReplacementPolicy": "Failed",
            # The Job's condition names the pod that failed first, and the others end at once.
            "podFailurePolicy": {
                "rules": [
                    {
                        "action": "FailJob",
                        "onExitCodes": {"containerName": CONTAINER, "operator": "NotIn", "values": [0]},
                    },
                    {"action": "FailJob", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
                ]
            },
            "ttlSecondsAfterFinished": _TTL_SECONDS,
            "template": template,
        },
    }


def _service(name: str, template: dict[str, Any]) -> list[tuple[Kind, dict[str, Any]]]:
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": _metadata(name, template),
        # The others must resolve node 0 before it is ready: it becomes ready only once they have connected.
        "spec": {"clusterIP": "None", "publishNotReadyAddresses": True, "selector": {TRAINING: name}},
    }
    return [(SERVICE, service)]


def _train_job(name: str, template: dict[str, Any], nodes: int, processes: int) -> dict[str, Any]:
    container = template["spec"]["containers"][0]
    return {
        "apiVersion": "trainer.kubeflow.org/v1alpha1",
        "kind": "TrainJob",
        "spec": {
            "runtimeRef": {"apiGroup": "trainer.kubeflow.org", "kind": "TrainingRuntime", "name": name},
            "trainer": {
                "numNodes": nodes,
                "numProcPerNode": processes,
                "image": container["image"],
                "command": container["command"],
                "resourcesPerNode": container["resources"],
            },
        },
    }


def _training_runtime(name: str, template: dict[str, Any]) -> list[tuple[Kind, dict[str, Any]]]:
    template = deepcopy(template)
    template["spec"]["restartPolicy"] = "Never"
    node = {
        "name": "node",
        "template": {
            "metadata": {"labels": {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}},
            "spec": {"backoffLimit": 0, "template": template},
        },
    }
    runtime = {
        "apiVersion": "trainer.kubeflow.org/v1alpha1",
        "kind": "TrainingRuntime",
        "metadata": _metadata(name, template),
        "spec": {
            "mlPolicy": {"numNodes": 1, "torch": {}},
            "template": {
                # No ttlSecondsAfterFinished, here or in the Job: once the JobSet of a failed TrainJob is gone, Trainer
                # 2.3 creates it and trains again (kubeflow/trainer#3737, #3779). A TrainJob has no such field.
                "spec": {
                    # The others must resolve node 0 before it is ready.
                    "network": {"enableDNSHostnames": True, "publishNotReadyAddresses": True},
                    "failurePolicy": {"maxRestarts": 0},
                    "replicatedJobs": [node],
                }
            },
        },
    }
    return [(_TRAINING_RUNTIME, runtime)]


def _pytorch_job(_name: str, template: dict[str, Any], nodes: int, processes: int) -> dict[str, Any]:
    def replicas(count: int) -> dict[str, Any]:
        return {"replicas": count, "restartPolicy": "Never", "template": deepcopy(template)}

    return {
        "apiVersion": "kubeflow.org/v1",
        "kind": "PyTorchJob",
        "spec": {
            "nprocPerNode": str(processes),
            "runPolicy": {"backoffLimit": 0, "cleanPodPolicy": "Running", "ttlSecondsAfterFinished": _TTL_SECONDS},
            "pytorchReplicaSpecs": {"Master": replicas(1), "Worker": replicas(nodes - 1)},
        },
    }


SERVICE = Kind("", "v1", "services")
_TRAINING_RUNTIME = Kind("trainer.kubeflow.org", "v1alpha1", "trainingruntimes")

WORKLOADS: Mapping[str, Workload] = {
    workload.name: workload
    for workload in (
        Workload("job", Kind("batch", "v1", "jobs"), CONTAINER, _job, after=_service),
        Workload(
            "trainjob",
            Kind("trainer.kubeflow.org", "v1alpha1", "trainjobs"),
            "node",
            _train_job,
            # The TrainJob and its JobSet, and the JobSet's Job.
            reporters=lambda name: (name, f"{name}-node-0"),
            before=_training_runtime,
        ),
        Workload(
            "pytorchjob",
            Kind("kubeflow.org", "v1", "pytorchjobs"),
            "pytorch",
            _pytorch_job,
            first={"training.kubeflow.org/replica-type": "master"},
            succeeded="Succeeded",
        ),
    )
}
