"""What a platform says of its Kubernetes cluster: images, sizes of pods, identities, how several nodes train."""

from __future__ import annotations

import re
from difflib import get_close_matches
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from include.errors import ConfigurationError
from include.specs.base import Model

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
"""Of a resource, as Kubernetes writes it: `500m`, `4`, `16Gi`."""


def amount(quantity: str) -> float:
    """A quantity as a plain number: bytes, or cores."""
    match = _QUANTITY.fullmatch(quantity)
    assert match is not None
    return float(match[1]) * _UNITS.get(match[2], 1.0)


class Size(Model):
    """What one pod gets, and where it may run.

    Attributes:
        cpu: cores, requested. `memory`: requested, and the limit.
        scratch: of the volume at /scratch, where a job keeps what it downloads and makes; the root is read-only.
        shm: limit of the Memory volume at /dev/shm, through which ranks and data loaders talk; it counts as memory.
        gpus: of the cluster's `gpu_resource`; one process each, so a job has to have as many (`include.sizing`).
        gpu_memory: of each GPU; a training that needs more is refused before it asks for one.
        efa: Elastic Fabric Adapters (`vpc.amazonaws.com/efa`).
        hugepages: of 2 MiB, which EFA's library maps for its buffers: a pod that has none of them is killed by SIGBUS
            where it does.
        environment: variables of pods of this size, NCCL's above all.
        grace_seconds: instead of the platform's: what a job of this size saves when it is asked to stop has to fit in.
        price_per_hour: of one such pod, in US dollars: what the manifest and the report call a job's cost.
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
        images: by job, or by environment (`Spec.environment`) for jobs that are not named. In production each names a
            digest, and `pin_images` insists.
        service_account: likewise by job or environment; which cloud identity it is, is the cluster's affair (IRSA, pod
            identity). `service_account_token`: whether its token for the Kubernetes API is mounted, which no job needs.
        user: uid and gid of the jobs.
        sizes: of pods, by name. `stages`: size by job; `default` for those that are not named. A recipe's `sizes` come
            first.
        pod_template: what else a pod needs, merged below everything that is stated here: a Pod as Kubernetes writes it.
        volumes, volume_mounts: shared file systems (PVC, FSx), as Kubernetes writes them.
        secrets: environment variable → key of a Secret; never in a spec, a log or a manifest.
        serving_token: what stands at the platform's `serving.token_file`, in the pods of the jobs that ask for it.
        training: what several nodes train as (see `operators.kubernetes.workloads`): an Indexed Job, or an object of
            Kubeflow's.
        schedule_timeout_seconds: how long a pod may wait for a node; GPU nodes that are made on demand take 15 minutes.
        startup_timeout_seconds: from its node to its start, image and all.
        unreachable_seconds: how long the Kubernetes API may be away before a task that watches a pod gives up.
        keep_failed_pods: leave what failed where `kubectl describe` finds it, until the next try takes its place.
        pools: Airflow's, by task; one that counts deferred tasks keeps the cluster's GPUs from being asked for twice.
        retries: by task, where it is tried again more often than others (`operators.defaults`): a training goes on from
            its last checkpoint after each preemption, however many there are.
        labels: on every object, beside those that Anemone sets; the cost centre, for one.
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
            raise ValueError("stages needs the key default: the size of jobs that are not named")
        if unknown := sorted(set(self.stages.values()) - set(self.sizes)):
            raise ValueError(f"stages name the size {unknown[0]!r}: choose one of {', '.join(sorted(self.sizes))}")
        loose = [image for image in self.images.values() if not _DIGEST.fullmatch(image)]
        if self.pin_images and loose:
            raise ValueError(f"pin_images is on, and the image {loose[0]!r} has no digest: write name@sha256:…")
        return self

    def image(self, job: str, environment: str) -> str:
        """Reference of the image that runs a job. Raises ConfigurationError where the platform names none."""
        found = self.images.get(job, self.images.get(environment))
        if found is None:
            raise ConfigurationError(
                f"the platform names no image for the job {job}: add {environment} to cluster.images"
            )
        return found

    def account(self, job: str, environment: str) -> str | None:
        """The service account of a job's pods; None: the namespace's own."""
        return self.service_account.get(job, self.service_account.get(environment))

    def size_name(self, job: str, wanted: str | None = None) -> str:
        """What the size of a job's pod is called: the recipe's choice, or the platform's own."""
        return wanted if wanted is not None else self.stages.get(job, self.stages["default"])

    def size(self, job: str, wanted: str | None = None) -> Size:
        """What a job's pod gets: the size that its recipe wants, or the platform's own choice.

        Raises:
            ConfigurationError: the recipe wants a size that this platform does not have.
        """
        name = self.size_name(job, wanted)
        if name not in self.sizes:
            near = get_close_matches(name, self.sizes, n=1)
            hint = f"did you mean {near[0]!r}" if near else f"choose one of {', '.join(sorted(self.sizes))}"
            raise ConfigurationError(
                f"the recipe wants {job} in pods of size {name!r}, which this platform lacks: {hint}"
            )
        return self.sizes[name]
