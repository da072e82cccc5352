"""What a real API server lets each service account do: what the roles say, and nothing else."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import product
from uuid import uuid4

import pytest
import yaml
from kubernetes import client, config, utils

from include.home import PROJECT
from tests.kubernetes.rbac import Right, granted

FOLDER = PROJECT / "include" / "deploy" / "kubernetes"
ROLES = {
    "airflow-worker": [("airflow", "anemone-worker"), ("kubeflow", "anemone-worker-kubeflow")],
    "airflow-triggerer": [("airflow", "anemone-triggerer"), ("kubeflow", "anemone-triggerer-kubeflow")],
    "airflow-scheduler": [("airflow", "airflow-executor")],
}
"""Folder and name of each account's roles."""

_VERBS = ("create", "get", "list", "watch", "update", "patch", "delete", "deletecollection")
_RESOURCES = (
    *(("", name) for name in ("pods", "pods/log", "pods/exec", "pods/attach", "pods/eviction", "services", "events")),
    *(("", name) for name in ("secrets", "configmaps", "serviceaccounts", "serviceaccounts/token")),
    *(("batch", name) for name in ("jobs", "jobs/status", "cronjobs")),
    *(("apps", name) for name in ("deployments", "deployments/scale", "statefulsets")),
    *(("rbac.authorization.k8s.io", name) for name in ("roles", "rolebindings")),
    *(("trainer.kubeflow.org", name) for name in ("trainjobs", "trainingruntimes", "clustertrainingruntimes")),
    ("kubeflow.org", "pytorchjobs"),
)

pytestmark = pytest.mark.skipif("KUBECONFIG" not in os.environ, reason="KUBECONFIG names no cluster")


@pytest.fixture(scope="module")
def api() -> client.ApiClient:
    config.load_kube_config()
    return client.ApiClient()


@pytest.fixture(scope="module")
def namespace(api: client.ApiClient) -> Iterator[str]:
    name = f"anemone-test-{uuid4().hex[:8]}"
    core = client.CoreV1Api(api)
    core.create_namespace({"metadata": {"name": name}})
    try:
        for file in ("airflow/service-accounts", "airflow/rbac", "kubeflow/rbac"):
            for document in yaml.safe_load_all((FOLDER / f"{file}.yaml").read_text()):
                utils.create_from_dict(api, document, namespace=name)
        yield name
    finally:
        core.delete_namespace(name)


def rights(api: client.ApiClient, namespace: str, account: str) -> set[Right]:
    """What the API server would let a service account do, of all that is asked here."""
    reviews = client.AuthorizationV1Api(api)
    found = set()
    for verb, (group, resource) in product(_VERBS, _RESOURCES):
        name, _, subresource = resource.partition("/")
        asked = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "LocalSubjectAccessReview",
            "metadata": {"namespace": namespace},
            "spec": {
                "user": f"system:serviceaccount:{namespace}:{account}",
                "groups": ["system:serviceaccounts", f"system:serviceaccounts:{namespace}", "system:authenticated"],
                "resourceAttributes": {
                    "namespace": namespace,
                    "verb": verb,
                    "group": group,
                    "resource": name,
                    "subresource": subresource,
                },
            },
        }
        if reviews.create_namespaced_local_subject_access_review(namespace, asked).status.allowed:
            found.add(Right(verb, group, resource))
    return found


@pytest.mark.parametrize("account", ROLES)
def test_an_account_may_do_what_its_roles_say(api: client.ApiClient, namespace: str, account: str) -> None:
    said = set[Right]().union(*(granted(FOLDER / folder / "rbac.yaml", role) for folder, role in ROLES[account]))
    assert rights(api, namespace, account) == said


def test_a_jobs_account_may_do_nothing(api: client.ApiClient, namespace: str) -> None:
    assert rights(api, namespace, "anemone-jobs") == set()
