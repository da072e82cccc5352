"""The pod that runs a job, from the job's spec, its platform and a size: plain data, in Kubernetes' own form."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any

from kubernetes.utils.quantity import parse_quantity

from include.code_identity import IMAGE
from include.errors import ConfigurationError
from include.job_environment import (
    CORES,
    GATHER_SECONDS,
    GRACE_SECONDS,
    METRICS_PORT,
    PRICE_PER_HOUR,
    TERMINATION_LOG,
)
from include.platforms import Platform
from include.platforms.cluster import Cluster, Size
from include.specs import job_module
from include.specs.base import JobSpec

CONTAINER = "base"
"""The container that runs the job; Airflow's operators find it by this name."""

SCRATCH = "/scratch"

JOB_LABEL = "app.kubernetes.io/component"
"""Label: the pod's job."""

SPEC_ANNOTATION = "anemone/spec"
"""Annotation: URI of the spec that the pod works on, which names its output."""

_EFA = "vpc.amazonaws.com/efa"
_TERMINATION_PATH = "/dev/termination-log"

_HOMES = {
    "HOME": SCRATCH,
    "TMPDIR": SCRATCH,
    "XDG_CACHE_HOME": f"{SCRATCH}/cache",
    "XDG_CONFIG_HOME": f"{SCRATCH}/config",
    "HF_HOME": f"{SCRATCH}/huggingface",
    "TRITON_CACHE_DIR": f"{SCRATCH}/cache/triton",
    "TORCHINDUCTOR_CACHE_DIR": f"{SCRATCH}/cache/inductor",
    "MPLCONFIGDIR": f"{SCRATCH}/config/matplotlib",
}
"""Where libraries write; everything else of the pod is read-only."""


def cluster_of(platform: Platform) -> Cluster:
    """Return the platform's cluster. Raises ConfigurationError where it has none."""
    if platform.cluster is None:
        raise ConfigurationError(
            f"the platform {platform.name} has no cluster: give it the section, or set ANEMONE_PLATFORM to one that "
            "has it"
        )
    return platform.cluster


def job_pod(spec: JobSpec, uri: str, platform: Platform, *, size: str | None = None) -> dict[str, Any]:
    """Return the pod that runs a job: everything but its name, its namespace and the labels of its task.

    Args:
        spec: of the job. `uri`: where the job reads it.
        size: name of the recipe's choice, if it has one.

    Raises:
        ConfigurationError: the platform has no cluster, no image for the job, or no such size.
    """
    cluster = cluster_of(platform)
    wanted = cluster.size(spec.job, size)
    mounts = _mounts(spec, platform, cluster, wanted)
    command = ["python", "-m", job_module(spec.job), "--spec", uri]
    environment = _environment(spec, platform, cluster, wanted)
    port = next((entry["value"] for entry in environment if entry["name"] == METRICS_PORT), None)
    container = {
        "name": CONTAINER,
        "image": cluster.image(spec.job, spec.environment),
        "imagePullPolicy": cluster.image_pull_policy,
        "command": command,
        "env": environment,
        "ports": [{"name": "metrics", "containerPort": int(port)}] if port else [],
        "resources": _resources(cluster, wanted),
        "volumeMounts": [mount for _, mount in mounts] + list(cluster.volume_mounts),
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        },
        "terminationMessagePath": _TERMINATION_PATH,
        "terminationMessagePolicy": "FallbackToLogsOnError",
    }
    pod = {
        "restartPolicy": "Never",
        "containers": [container],
        "volumes": [volume for volume, _ in mounts] + list(cluster.volumes),
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": cluster.user,
            "runAsGroup": cluster.user,
            "fsGroup": cluster.user,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "automountServiceAccountToken": cluster.service_account_token,
        # A Service named router would put ROUTER_PORT and the like into every job's environment.
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": round(_grace(platform, wanted)),
        "serviceAccountName": cluster.account(spec.job, spec.environment),
        "imagePullSecrets": [{"name": name} for name in cluster.image_pull_secrets],
        "nodeSelector": wanted.node_selector,
        "tolerations": list(wanted.tolerations),
        "affinity": wanted.affinity,
        "priorityClassName": wanted.priority_class,
    }
    labels = {
        **cluster.labels,
        "app.kubernetes.io/name": "anemone-job",
        JOB_LABEL: spec.job,
        "app.kubernetes.io/managed-by": "airflow",
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"labels": labels, "annotations": {SPEC_ANNOTATION: uri}},
        "spec": {key: value for key, value in pod.items() if value not in (None, [], {})},
    }


def _environment(spec: JobSpec, platform: Platform, cluster: Cluster, size: Size) -> list[dict[str, Any]]:
    values = {
        **_HOMES,
        **platform.environment,
        **size.environment,
        "PYTHONUNBUFFERED": "1",
        TERMINATION_LOG: _TERMINATION_PATH,
        CORES: str(max(1, int(parse_quantity(size.cpu)))),
        IMAGE: cluster.image(spec.job, spec.environment),
        GRACE_SECONDS: str(round(_grace(platform, size))),
        **({} if size.price_per_hour is None else {PRICE_PER_HOUR: str(size.price_per_hour)}),
    }
    if getattr(spec.config, "nodes", 1) > 1:
        values[GATHER_SECONDS] = str(cluster.schedule_timeout_seconds + cluster.startup_timeout_seconds)
    plain = [{"name": name, "value": value} for name, value in values.items() if name not in cluster.secrets]
    secret = [
        {"name": name, "valueFrom": {"secretKeyRef": {"name": source.secret, "key": source.key}}}
        for name, source in cluster.secrets.items()
    ]
    return plain + secret


def _grace(platform: Platform, size: Size) -> float:
    return platform.grace_seconds if size.grace_seconds is None else size.grace_seconds


def _resources(cluster: Cluster, size: Size) -> dict[str, dict[str, str]]:
    # Devices and huge pages cannot be overcommitted, so their request is their limit; cores can.
    devices: dict[str, str] = {}
    if size.gpus:
        devices[cluster.gpu_resource] = str(size.gpus)
    if size.efa:
        devices[_EFA] = str(size.efa)
    if size.hugepages:
        devices["hugepages-2Mi"] = size.hugepages
    # Ephemeral storage, so that the scheduler finds a node that has it; the volume's own limit evicts.
    requests = {"cpu": size.cpu, "memory": size.memory, "ephemeral-storage": size.scratch, **devices}
    return {"requests": requests, "limits": {"memory": size.memory, **devices}}


def _mounts(
    spec: JobSpec, platform: Platform, cluster: Cluster, size: Size
) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Return (volume, mount) of what every pod has, and of the serving token where the job reads its file."""
    found: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({"name": "scratch", "emptyDir": {"sizeLimit": size.scratch}}, {"name": "scratch", "mountPath": SCRATCH}),
        ({"name": "tmp", "emptyDir": {"sizeLimit": size.scratch}}, {"name": "tmp", "mountPath": "/tmp"}),
    ]
    if size.shm:
        shm = {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": size.shm}}
        found.append((shm, {"name": "shm", "mountPath": "/dev/shm"}))
    if cluster.serving_token is not None and "token_file" in type(spec.config).model_fields:
        path = PurePosixPath(platform.serving.token_file)
        token = cluster.serving_token
        items = [{"key": token.key, "path": path.name}]
        # Readable by its group, which is the pod's fsGroup.
        secret = {"secretName": token.secret, "items": items, "defaultMode": 0o440}
        mount = {"name": "serving-token", "mountPath": str(path.parent), "readOnly": True}
        found.append(({"name": "serving-token", "secret": secret}, mount))
    return found
