"""Airflow's values fit to the platforms, to the roles and to the images."""

from __future__ import annotations

import json
import re
from importlib import import_module
from typing import Any

import pytest
import yaml

from include.code_identity import PROJECT
from include.platforms import load_platform

VALUES = PROJECT / "include" / "deploy" / "helm" / "airflow-values.yaml"
KUBERNETES = PROJECT / "include" / "deploy" / "kubernetes"
CLUSTERS = ("cpu-cluster", "eks-a100", "eks-h100")


@pytest.fixture(scope="module")
def values() -> dict[str, Any]:
    return yaml.safe_load(VALUES.read_text())


@pytest.fixture(scope="module")
def environment(values: dict[str, Any]) -> dict[str, str]:
    return {entry["name"]: entry["value"] for entry in values["env"]}


@pytest.mark.parametrize("platform", CLUSTERS)
def test_every_component_knows_all_that_a_platform_asks_for(
    platform: str, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        # eks-a100 and eks-h100 insist on digests, which only their owner knows.
        pinned = name.endswith("_IMAGE") and platform.startswith("eks-")
        monkeypatch.setenv(name, f"{value}@sha256:{'0' * 64}" if pinned else value)
    load_platform.cache_clear()
    try:
        cluster = load_platform(platform).cluster
    finally:
        load_platform.cache_clear()
    assert cluster is not None and cluster.namespace == environment["ANEMONE_NAMESPACE"]


def test_the_platform_of_the_values_is_one_of_them(environment: dict[str, str]) -> None:
    assert environment["ANEMONE_PLATFORM"] in CLUSTERS


def test_each_pool_of_a_platform_is_made_and_counts_deferred_tasks(values: dict[str, Any]) -> None:
    command = " ".join(values["migrateDatabaseJob"]["args"])
    made = {match[1] for match in re.finditer(r"airflow pools set (\w+) \d+ \"[^\"]*\" --include-deferred", command)}
    documents = [yaml.safe_load((PROJECT / "include" / "platforms" / f"{name}.yaml").read_text()) for name in CLUSTERS]
    asked = {pool for document in documents for pool in document["cluster"].get("pools", {}).values()}
    assert asked and asked <= made


def test_the_components_run_as_the_accounts_that_the_roles_are_bound_to(values: dict[str, Any]) -> None:
    documents = [
        document
        for name in ("rbac", "service-accounts")
        for document in yaml.safe_load_all((KUBERNETES / "airflow" / f"{name}.yaml").read_text())
    ]
    accounts = {one["metadata"]["name"] for one in documents if one["kind"] == "ServiceAccount"}
    bound = {
        one["roleRef"]["name"]: {subject["name"] for subject in one["subjects"]}
        for one in documents
        if one["kind"] == "RoleBinding"
    }
    named = {
        "scheduler": values["scheduler"]["serviceAccount"],
        "triggerer": values["triggerer"]["serviceAccount"],
        "worker": values["workers"]["kubernetes"]["serviceAccount"],
    }
    assert not any(account["create"] for account in named.values())
    assert bound["anemone-operators"] == {named["worker"]["name"], named["triggerer"]["name"]} <= accounts
    assert bound["airflow-executor"] == {named["scheduler"]["name"]} <= accounts
    assert values["allowPodLaunching"] is False


def test_no_secret_stands_in_the_values(values: dict[str, Any]) -> None:
    assert values["postgresql"]["enabled"] is False and values["createUserJob"]["enabled"] is False
    assert {"fernetKeySecretName", "apiSecretKeySecretName", "jwtSecretName"} <= set(values)
    assert not {"fernetKey", "apiSecretKey", "jwtSecret"} & set(values)
    assert set(values["data"]) == {"metadataSecretName"}


def test_the_connection_to_the_cluster_is_this_one(environment: dict[str, str]) -> None:
    connection = json.loads(environment["AIRFLOW_CONN_KUBERNETES_DEFAULT"])
    assert connection == {"conn_type": "kubernetes", "extra": {"in_cluster": True}}


def test_all_images_of_one_version(values: dict[str, Any], environment: dict[str, str]) -> None:
    tag = values["images"]["airflow"]["tag"]
    tags = {value.rpartition(":")[2] for name, value in environment.items() if name.endswith("_IMAGE")}
    assert tags == {tag}
    assert values["uid"] == values["gid"] == values["securityContexts"]["pod"]["runAsUser"] == 10001


def test_the_bundle_of_dags_can_be_imported(values: dict[str, Any]) -> None:
    for bundle in values["dagProcessor"]["dagBundleConfigList"]:
        module, _, name = bundle["classpath"].rpartition(".")
        assert hasattr(import_module(module), name)
