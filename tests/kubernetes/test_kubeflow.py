"""Trainings in Kubeflow's two forms: a real API server takes their objects as they are, and from whom makes them.

What a controller would do is done by the tests: where one answers by itself, that is left to it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from functools import partialmethod
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from airflow.sdk.exceptions import AirflowException, TaskDeferred
from kubernetes.client import CustomObjectsApi
from kubernetes.client.exceptions import ApiException

from include.artifacts.store import Store
from include.home import PROJECT
from include.recipes import resolve
from operators.kubernetes.workloads import WORKLOADS, Kind
from tests.kubernetes.namespace import Namespace, connection, need_resource, wait_for
from tests.kubernetes.task import Task, mark_failed

ROOT = PROJECT / "include" / "deploy" / "kubernetes"
RUNTIME = Kind("trainer.kubeflow.org", "v1alpha1", "trainingruntimes")
KINDS = {"trainjob": [WORKLOADS["trainjob"].kind, RUNTIME], "pytorchjob": [WORKLOADS["pytorchjob"].kind]}
"""What is made of each form."""


@pytest.fixture(params=sorted(KINDS))
def form(request: pytest.FixtureRequest) -> str:
    for kind in KINDS[request.param]:
        need_resource(f"{kind.group}/{kind.version}", kind.plural)
    return request.param


@pytest.fixture
def strict(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the API server does not know of an object, it refuses instead of dropping it."""
    create = CustomObjectsApi.create_namespaced_custom_object
    name = "create_namespaced_custom_object"
    monkeypatch.setattr(CustomObjectsApi, name, partialmethod(create, field_validation="Strict"))


@pytest.fixture
def become(form: str, namespace: Namespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Ask the cluster as one of the service accounts that Airflow's components have."""
    for file in ("airflow/service-accounts", "airflow/rbac", "kubeflow/rbac"):
        namespace.kubectl("apply", "--filename", str(ROOT / f"{file}.yaml"))

    def as_account(name: str) -> None:
        kubeconfig = namespace.kubeconfig(name, tmp_path)
        monkeypatch.setenv("AIRFLOW_CONN_KUBERNETES_DEFAULT", connection(kubeconfig))

    return as_account


@pytest.fixture
def store(artifacts: Store) -> Store:
    return artifacts


@pytest.fixture
def task(
    form: str,
    use: Callable[..., None],
    become: Callable[[str], None],
    store: Store,
    commit: Callable[..., Any],
    strict: None,
) -> Task:
    """A training on two nodes in this form, begun by Airflow's worker."""
    use(training=form)
    become("airflow-worker")
    names = {name: f"{name}-{uuid4().hex[:8]}" for name in ("base", "data")}
    for name in names.values():
        commit(name, {"a": name})
    inputs = {given: store.uri(name) for given, name in names.items()}
    section = resolve("demo/0.8M_lora_cpu").plan()["finetune"]
    config = {**section["config"], "processes": 4, "nodes": 2, "local_batch_size": 8}
    return Task(f"manual__{uuid4().hex[:8]}", {**section, "config": config, "size": "training"}, inputs)


def resource(kind: Kind) -> str:
    return f"{kind.plural}.{kind.group}"


def gone(namespace: Namespace, form: str, name: str) -> bool:
    return all(namespace.get(resource(kind), name) is None for kind in KINDS[form])


def test_a_training_is_made_adopted_and_taken_away(
    form: str, task: Task, namespace: Namespace, become: Callable[[str], None]
) -> None:
    deferred = task.begin()
    assert isinstance(deferred, TaskDeferred)
    made = [namespace.get(resource(kind), task.pod) for kind in KINDS[form]]
    training, *others = made
    assert training is not None
    for other in others:
        assert other is not None
        assert [owner["uid"] for owner in other["metadata"]["ownerReferences"]] == [training["metadata"]["uid"]]
    # The worker is gone, and what it has made is all that the next one finds.
    assert isinstance(task.begin(), TaskDeferred)
    again = namespace.get(resource(KINDS[form][0]), task.pod)
    assert again is not None and again["metadata"]["uid"] == training["metadata"]["uid"]
    become("airflow-triggerer")
    mark_failed(deferred)
    wait_for(lambda: gone(namespace, form, task.pod), 120, "the training to be gone")


def test_how_it_ended_is_read(form: str, task: Task, namespace: Namespace, become: Callable[[str], None]) -> None:
    deferred = task.begin()
    assert isinstance(deferred, TaskDeferred)
    kind = KINDS[form][0]
    time.sleep(3)
    training = namespace.get(resource(kind), task.pod)
    assert training is not None
    if training.get("status"):
        pytest.skip(f"a controller answers for {kind.plural} here")
    now = training["metadata"]["creationTimestamp"]
    condition = {"type": WORKLOADS[form].failed, "status": "True", "reason": "TooMuch", "message": "of it"}
    condition |= {"lastTransitionTime": now}
    patch = json.dumps({"status": {"conditions": [condition]}})
    namespace.kubectl("patch", resource(kind), task.pod, "--subresource=status", "--type=merge", "--patch", patch)
    become("airflow-triggerer")
    with pytest.raises(AirflowException, match=rf"training {task.pod} failed \(TooMuch: of it\)"):
        task.resume(deferred)
    wait_for(lambda: gone(namespace, form, task.pod), 120, "the training to be gone")


def test_what_the_api_server_does_not_know_it_refuses(
    form: str, task: Task, namespace: Namespace, strict: None
) -> None:
    kind = KINDS[form][0]
    body = {"apiVersion": f"{kind.group}/{kind.version}", "kind": "?", "metadata": {"name": "misspelt"}, "spec": {}}
    body |= {"kind": {"trainjob": "TrainJob", "pytorchjob": "PyTorchJob"}[form], "spec": {"misspelt": 1}}
    api = task.operator().hook.custom_object_client
    with pytest.raises(ApiException, match="misspelt") as refused:
        api.create_namespaced_custom_object(kind.group, kind.version, namespace.name, kind.plural, body)
    assert refused.value.status in (400, 422)
