"""A platform's Kubernetes cluster: images, sizes of pods, identities, how several nodes train."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from include.errors import ConfigurationError, suggestion
from include.model import Model

_QUANTITY = re.compile(r"(\d+(?:\.\d+)?)(m|k|Ki|M|Mi|G|Gi|T|Ti)?")
_LABEL = re.compile(r"(?=.{1,63}$)[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")
_DIGEST = re.compile(r".+@sha256:[0-9a-f]{64}")


def _quantity(text: str) -> str:
    if not _QUANTITY.fullmatch(text):
        raise ValueError(f"{text!r} is no Kubernetes quantity: write 500m, 4, 16Gi")
    return text


_UNITS = {"m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}


def _label(text: str) -> str:
    if not _LABEL.fullmatch(text):
        raise ValueError(
            f"{text!r} is no value of a label: up to 63 letters, digits, '-', '_', '.', the first and last "
            "of them a letter or digit"
        )
    return text


Quantity = Annotated[str, AfterValidator(_quantity)]
"""Of a resource, in Kubernetes' notation: `500m`, `4`, `16Gi`."""


def amount(quantity: str) -> float:
    """Return a quantity as a number: of bytes, or cores."""
    match = _QUANTITY.fullmatch(quantity)
    assert match is not None
    return float(match[1]) * _UNITS.get(match[2], 1.0)


class Size(Model):
    """The resources of one pod, and where it may run.

    Attributes:
        cpu: cores, requested. `memory`: requested, and the limit.
        scratch: size of the volume at /scratch, for what a job downloads and makes; the root is read-only.
        shm: limit of the Memory volume at /dev/shm, for ranks and data loaders; it counts as memory.
        gpus: of the cluster's `gpu_resource`; a job has one process for each (`include.sizing`).
        gpu_memory: of each GPU; a training that needs more is refused before it requests one.
        efa: Elastic Fabric Adapters (`vpc.amazonaws.com/efa`).
        hugepages: of 2 MiB, for the buffers of EFA's library: without them, SIGBUS kills a pod that uses it.
        environment: variables of pods of this size, NCCL's above all.
        grace_seconds: instead of the platform's: long enough for what a job of this size saves when asked to stop.
        price_per_hour: of one such pod, in US dollars, for a job's cost in its manifest and in the report.
    """

    cpu: Quantity
    memory: Quantity
    scratch: Quantity = "20Gi"
    shm: Quantity | None = None
    gpus: Annotated[int, Field(ge=0)] = 0
    gpu_memory: Quantity | None = None
    efa: Annotated[int, Field(ge=0)] = 0
    hugepages: Quantity | None = None
    node_selector: dict[str, str] = {}
    tolerations: tuple[dict[str, Any], ...] = ()
    affinity: dict[str, Any] | None = None
    priority_class: str | None = None
    environment: dict[str, str] = {}
    grace_seconds: Annotated[float, Field(ge=0)] | None = None
    price_per_hour: Annotated[float, Field(ge=0)] | None = None


class SecretKey(Model):
    """One key of a Kubernetes Secret, for an environment variable."""

    secret: str
    key: str


class Cluster(Model):
    """Where the pods of the jobs run, and as whom.

    Attributes:
        connection: Airflow connection of the cluster. `in_cluster`: None leaves it to the connection.
        images: by job, or by environment (`Spec.environment`) for jobs that are not listed. `pin_images` refuses images
            without a digest, for production.
        service_account: likewise by job or environment; the cluster maps it to a cloud identity (IRSA, pod identity).
            `service_account_token`: whether its token for the Kubernetes API is mounted, which no job needs.
        user: uid and gid of the jobs.
        sizes: of pods, by name. `stages`: size by job; `default` for those that are not listed. A recipe's `sizes` come
            first.
        pod_template: a Pod in Kubernetes' own form, for what is not stated here; what is stated here comes first.
        volumes, volume_mounts: shared file systems (PVC, FSx), in Kubernetes' own form.
        secrets: environment variable → key of a Secret; never in a spec, a log or a manifest.
        serving_token: mounted at the platform's `serving.token_file`, in the pods of the jobs that read it.
        training: the workload of a training on several nodes (see `operators.kubernetes.workloads`): an Indexed Job, or
            one of Kubeflow's.
        schedule_timeout_seconds: how long a pod may wait for a node; GPU nodes on demand take 15 minutes.
        startup_timeout_seconds: from being scheduled to running, with the pull of the image.
        unreachable_seconds: how long the Kubernetes API may be unreachable before a task that watches a pod gives up.
        keep_failed_pods: keep failed pods for `kubectl describe` until the next try starts.
        pools: Airflow's, by task; one that counts deferred tasks limits how many request the cluster's GPUs at once.
        retries: by task, where they differ from `operators.defaults`: a training continues from its last checkpoint
            after each preemption, however many there are.
        labels: of every object, beside those that Anemone sets: a cost centre, for instance.
    """

    namespace: str
    connection: str = "kubernetes_default"
    in_cluster: bool | None = None
    images: dict[str, str]
    pin_images: bool = False
    image_pull_secrets: tuple[str, ...] = ()
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] = "IfNotPresent"
    service_account: dict[str, str] = {}
    service_account_token: bool = False
    user: Annotated[int, Field(gt=0)] = 10001
    sizes: dict[str, Size]
    stages: dict[str, str]
    gpu_resource: str = "nvidia.com/gpu"
    pod_template: dict[str, Any] = {}
    volumes: tuple[dict[str, Any], ...] = ()
    volume_mounts: tuple[dict[str, Any], ...] = ()
    secrets: dict[str, SecretKey] = {}
    serving_token: SecretKey | None = None
    training: Literal["job", "trainjob", "pytorchjob"] = "job"
    schedule_timeout_seconds: Annotated[int, Field(gt=0)] = 1800
    startup_timeout_seconds: Annotated[int, Field(gt=0)] = 1200
    unreachable_seconds: Annotated[int, Field(gt=0)] = 3600
    keep_failed_pods: bool = False
    pools: dict[str, str] = {}
    retries: dict[str, Annotated[int, Field(ge=0)]] = {"finetune": 10}
    labels: dict[str, Annotated[str, AfterValidator(_label)]] = {}

    @model_validator(mode="after")
    def _consistent(self) -> Cluster:
        if "default" not in self.stages:
            raise ValueError("stages needs the key default: the size of jobs that are not listed")
        if unknown := sorted(set(self.stages.values()) - set(self.sizes)):
            raise ValueError(f"stages name the size {unknown[0]!r}: choose one of {', '.join(sorted(self.sizes))}")
        loose = [image for image in self.images.values() if not _DIGEST.fullmatch(image)]
        if self.pin_images and loose:
            raise ValueError(f"pin_images is on, and the image {loose[0]!r} has no digest: write name@sha256:…")
        return self

    def image(self, job: str, environment: str) -> str:
        """Return the image that runs a job. Raises ConfigurationError where the platform names none."""
        found = self.images.get(job, self.images.get(environment))
        if found is None:
            raise ConfigurationError(
                f"the platform names no image for the job {job}: add {environment} to cluster.images"
            )
        return found

    def account(self, job: str, environment: str) -> str | None:
        """Return the service account of a job's pods; None: the namespace's default."""
        return self.service_account.get(job, self.service_account.get(environment))

    def size_name(self, job: str, wanted: str | None = None) -> str:
        """Return the name of a job's size: the recipe's choice, or the platform's."""
        return wanted if wanted is not None else self.stages.get(job, self.stages["default"])

    def size(self, job: str, wanted: str | None = None) -> Size:
        """Return the size of a job's pod: the recipe's choice, or the platform's.

        Raises:
            ConfigurationError: the recipe asks for a size that this platform does not have.
        """
        name = self.size_name(job, wanted)
        if name not in self.sizes:
            raise ConfigurationError(
                f"the recipe asks for {job} in pods of size {name!r}, which this platform lacks: "
                f"{suggestion(name, sorted(self.sizes))}"
            )
        return self.sizes[name]
