"""Airflow's values fit to the platforms, to the roles, to the images, and to the chart itself."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml

from include.home import PROJECT
from include.platforms import load_platform
from operators.store import platform_store
from tests.s3 import server

HELM = PROJECT / "include" / "deploy" / "helm"
VALUES = HELM / "airflow-values.yaml"
KUBERNETES = PROJECT / "include" / "deploy" / "kubernetes"
GOLDEN = Path(__file__).parent / "golden" / "airflow-chart.yaml"
CLUSTERS = ("cpu-cluster", "eks-a100", "eks-h100")
ADDITIONS: dict[str, list[str]] = {
    "as-they-are": [],
    "eks": ["eks"],
    "inbox": ["inbox"],
    "image-dags": ["image-dags"],
    "all": ["eks", "inbox", "image-dags"],
}


def merged(*names: str) -> dict[str, Any]:
    """The values with others on top, as Helm does it: mappings are joined, everything else is replaced."""

    def join(below: Any, above: Any) -> Any:
        if not isinstance(below, dict) or not isinstance(above, dict):
            return above
        return {**below, **{key: join(below.get(key), value) for key, value in above.items()}}

    found: dict[str, Any] = {}
    for path in (VALUES, *(HELM / f"{name}.yaml" for name in names)):
        found = join(found, yaml.safe_load(path.read_text()))
    return found


@pytest.fixture(scope="module")
def values() -> dict[str, Any]:
    return merged()


def environment_of(values: dict[str, Any]) -> dict[str, str]:
    """What every component of Airflow has in its environment, without what Secrets give."""
    entries = [*values["env"], *yaml.safe_load(values["extraEnv"] or "[]")]
    return {entry["name"]: entry["value"] for entry in entries}


@pytest.fixture(scope="module")
def environment(values: dict[str, Any]) -> dict[str, str]:
    return environment_of(values)


@pytest.fixture
def platform_of(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A platform as components see it that have these values."""

    def load(name: str, *additions: str) -> Any:
        # eks-a100 and eks-h100 insist on digests, which only their owner knows.
        pin = f"@sha256:{'0' * 64}" if name.startswith("eks-") else ""
        for key in [key for key in os.environ if key.startswith("ANEMONE_")]:
            monkeypatch.delenv(key)
        for key, value in environment_of(merged(*additions)).items():
            monkeypatch.setenv(key, value + pin if key.endswith("_IMAGE") else value)
        load_platform.cache_clear()
        return load_platform(name)

    yield load
    load_platform.cache_clear()


@pytest.mark.parametrize("name", CLUSTERS)
def test_every_component_knows_all_that_a_platform_asks_for(name: str, platform_of: Any, environment: Any) -> None:
    cluster = platform_of(name).cluster
    assert cluster is not None and cluster.namespace == environment["ANEMONE_NAMESPACE"]


def test_the_platform_of_the_values_is_one_of_them(environment: dict[str, str]) -> None:
    assert environment["ANEMONE_PLATFORM"] in CLUSTERS


def test_mlflow_is_the_one_that_is_deployed_beside_it(platform_of: Any) -> None:
    (service,) = [
        document
        for document in yaml.safe_load_all((KUBERNETES / "mlflow" / "mlflow.yaml").read_text())
        if document["kind"] == "Service"
    ]
    (literals,) = [
        generator["literals"]
        for generator in yaml.safe_load((KUBERNETES / "mlflow" / "kustomization.yaml").read_text())[
            "configMapGenerator"
        ]
    ]
    hosts = dict(literal.split("=", 1) for literal in literals)["MLFLOW_SERVER_ALLOWED_HOSTS"].split(",")
    for name in CLUSTERS:
        host = platform_of(name).environment["MLFLOW_TRACKING_URI"].removeprefix("http://")
        assert host == f"{service['metadata']['name']}.anemone.svc:{service['spec']['ports'][0]['port']}"
        assert host in hosts


def test_airflows_side_reaches_the_store_by_the_connection_of_the_secret(
    values: dict[str, Any], platform_of: Any, s3_server: str, s3_bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The Secret is made by the command at the head of the values, with the keys of a real server."""
    (made,) = re.findall(
        r"create secret generic (\S+) --from-literal=(\w+)='(.*?)'\n", VALUES.read_text().replace("\n#     ", ""), re.S
    )
    (entry,) = values["secret"]
    assert (entry["secretName"], entry["secretKey"]) == made[:2]
    connection = json.loads(made[2])
    assert connection["extra"]["endpoint_url"] == environment_of(values)["ANEMONE_S3_ENDPOINT"]
    assert connection["extra"]["region_name"] == environment_of(values)["ANEMONE_S3_REGION"]
    connection |= {"login": server.KEY, "password": server.SECRET}
    connection["extra"] = {"endpoint_url": s3_server, "region_name": server.REGION}
    platform = platform_of("cpu-cluster")
    assert entry["envName"] == f"AIRFLOW_CONN_{platform.store_connection.upper()}"
    assert values["config"]["logging"]["remote_log_conn_id"] == platform.store_connection
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL_S3", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name)
    monkeypatch.setenv(entry["envName"], json.dumps(connection))
    store = platform_store(platform.model_copy(update={"store": f"s3://{s3_bucket}/store"}))
    assert store.create("claims/one", b"first") and store.read_file("claims/one") == b"first"


@pytest.mark.parametrize("name", ["eks-a100", "eks-h100"])
def test_on_eks_there_is_no_key_and_no_connection(name: str, platform_of: Any) -> None:
    values = merged("eks")
    assert values["secret"] == []
    assert platform_of(name, "eks").store_connection is None
    component = yaml.safe_load((KUBERNETES / "eks" / "kustomization.yaml").read_text())["patches"][0]["patch"]
    (annotations,) = [operation["value"] for operation in yaml.safe_load(component)]
    assert values["apiServer"]["serviceAccount"]["annotations"] == annotations


def test_all_who_look_for_data_sets_see_one_folder(platform_of: Any) -> None:
    values = merged("inbox")
    said = [line.removeprefix("#   ") for line in (HELM / "inbox.yaml").read_text().splitlines() if "volume" in line]
    platforms = yaml.safe_load("\n".join(line for line in said if line.startswith("volume")))
    component = [values["triggerer"], values["workers"]["kubernetes"]]
    assert all(one["extraVolumes"] == platforms["volumes"] for one in component)
    assert all(one["extraVolumeMounts"] == platforms["volume_mounts"] for one in component)
    for name in CLUSTERS:
        assert platform_of(name, "inbox").arrivals.folder == platforms["volume_mounts"][0]["mountPath"]


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
    assert bound["anemone-worker"] == {named["worker"]["name"]} <= accounts
    assert bound["anemone-triggerer"] == {named["triggerer"]["name"]} <= accounts
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


def test_the_dags_in_the_image_can_be_a_bundle() -> None:
    (bundle,) = merged("image-dags")["dagProcessor"]["dagBundleConfigList"]
    module, _, name = bundle["classpath"].rpartition(".")
    assert hasattr(import_module(module), name)
    assert PROJECT / Path(bundle["kwargs"]["path"]).relative_to("/opt/anemone") == PROJECT / "dags"


def test_git_brings_the_dags_of_its_version_and_the_image_what_they_import(
    values: dict[str, Any], environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """GitDagBundle itself, on a bare repository with the DAG files of this checkout."""
    (bundle,) = values["dagProcessor"]["dagBundleConfigList"]
    kwargs = {**bundle["kwargs"], "repo_url": repository(tmp_path, bundle["kwargs"]["tracking_ref"])}
    monkeypatch.setenv("AIRFLOW_CONN_GIT_DEFAULT", environment["AIRFLOW_CONN_GIT_DEFAULT"])
    monkeypatch.setenv("AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_STORAGE_PATH", str(tmp_path / "bundles"))
    module, _, name = bundle["classpath"].rpartition(".")
    found = getattr(import_module(module), name)(name=bundle["name"], **kwargs)
    found.initialize()
    own = {**os.environ, "AIRFLOW_HOME": str(tmp_path / "airflow"), "ANEMONE_PLATFORM": "laptop", "PYTHONPATH": ""}
    command = [sys.executable, "-c", PARSE, str(found.path)]
    parsed = subprocess.run(command, cwd=tmp_path, env=own, capture_output=True, text=True)
    assert parsed.returncode == 0, parsed.stderr
    told = json.loads(parsed.stdout.splitlines()[-1])
    assert told["errors"] == {} and told["operators"] == str(PROJECT / "operators")
    assert told["dags"] == sorted(path.stem for path in (PROJECT / "dags").glob("*.py"))


PARSE = """
import json, sys
from pathlib import Path
import operators
from airflow.dag_processing.dagbag import BundleDagBag
bag = BundleDagBag(sys.argv[1], bundle_path=Path(sys.argv[1]), bundle_name="anemone")
told = {"dags": sorted(bag.dags), "errors": bag.import_errors, "operators": list(operators.__path__)[0]}
print(json.dumps(told))
"""


def repository(folder: Path, ref: str) -> str:
    """A bare repository that has the DAG files of this checkout under `ref`; a commit after it does not fit them."""
    work, bare = folder / "work", folder / "anemone.git"
    shutil.copytree(PROJECT / "dags", work / "dags", ignore=shutil.ignore_patterns("__pycache__"))

    def git(*arguments: str) -> None:
        name = ["-c", "user.name=a", "-c", "user.email=a@example.com"]
        subprocess.run(["git", *name, *arguments], cwd=work, check=True, capture_output=True)

    git("init", "--quiet")
    git("add", ".")
    git("commit", "--quiet", "--message=DAGs")
    git("tag", ref)
    (work / "dags" / "customize.py").write_text("from operators import something_of_the_next_version")
    git("commit", "--quiet", "--all", "--message=The next version")
    git("clone", "--quiet", "--bare", str(work), str(bare))
    return f"file://{bare}"


@pytest.fixture(scope="module")
def chart() -> str | None:
    """Where Airflow's chart lies, a folder or an archive of it; None where that is not known, or there is no helm."""
    return os.environ.get("ANEMONE_AIRFLOW_CHART") if shutil.which("helm") else None


def rendered(chart: str | None, *files: Path) -> list[dict[str, Any]]:
    """What the chart makes of the values; without a chart what it made of those that are ours, as it is kept here."""
    if chart is None:
        if files != (VALUES,):
            pytest.skip("ANEMONE_AIRFLOW_CHART names no chart, or there is no helm to render it with")
        return list(yaml.safe_load_all(GOLDEN.read_text()))
    command = ["helm", "template", "airflow", chart, "--namespace", "anemone"]
    for path in files:
        command += ["--values", str(path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [document for document in yaml.safe_load_all(done.stdout) if document]


def test_what_the_chart_made_of_the_values_is_kept(chart: str | None, pytestconfig: pytest.Config) -> None:
    head = f"# Of {VALUES.name} with the sha256 {hashlib.sha256(VALUES.read_bytes()).hexdigest()}.\n"
    if chart is not None:
        text = head + yaml.safe_dump_all(rendered(chart, VALUES), width=120)
        if pytestconfig.getoption("update_golden"):
            GOLDEN.write_text(text)
        assert GOLDEN.read_text() == text, "review the change, then run this test with --update-golden"
    assert GOLDEN.read_text().startswith(head), (
        f"{GOLDEN.name} is of other values: render it anew with helm and ANEMONE_AIRFLOW_CHART=CHART, of the version "
        f"that the values name>: pytest {Path(__file__).relative_to(PROJECT)} --update-golden"
    )


def pods(documents: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Specs of the pods that Airflow's components are, and of the pod that a task is."""
    found = {}
    for document in documents:
        spec = document.get("spec", {})
        spec = spec.get("jobTemplate", {}).get("spec", spec)
        if "template" in spec:
            found[document["metadata"]["name"]] = spec["template"]["spec"]
        for name, text in (document.get("data") or {}).items() if document["kind"] == "ConfigMap" else ():
            if name == "pod_template_file.yaml":
                found["task"] = yaml.safe_load(text)["spec"]
    return found


@pytest.mark.parametrize("addition", ADDITIONS)
def test_the_chart_makes_valid_objects_of_them(chart: str | None, addition: str) -> None:
    validate = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed").validate
    documents = rendered(chart, VALUES, *(HELM / f"{name}.yaml" for name in ADDITIONS[addition]))
    assert {"airflow-api-server", "airflow-scheduler", "airflow-triggerer", "task"} <= set(pods(documents))
    for document in documents:
        for version in ("1.30", "1.34"):
            validate(document, version, strict=True)


def test_the_chart_makes_no_object_that_is_there_before_it(chart: str | None) -> None:
    ours = [
        (document["kind"], document["metadata"]["name"])
        for path in (KUBERNETES / "airflow").glob("*.yaml")
        for document in yaml.safe_load_all(path.read_text())
        if document["kind"] != "Kustomization"
    ]
    theirs = {(document["kind"], document["metadata"]["name"]) for document in rendered(chart, VALUES)}
    assert ours and not theirs & set(ours)


def test_each_component_is_of_our_image_and_runs_what_is_in_it(chart: str | None, tmp_path: Path) -> None:
    pinned = "anemone/airflow:0.1.0" + ("" if chart is None else "@sha256:" + "0" * 64)
    values = VALUES
    if chart is not None:
        values = tmp_path / "pinned.yaml"
        values.write_text(VALUES.read_text().replace("    tag: 0.1.0\n", f"    tag: {pinned[16:]}\n"))
    documents = rendered(chart, values)
    (config,) = [one["data"]["airflow.cfg"] for one in documents if "airflow.cfg" in (one.get("data") or {})]
    assert f"worker_container_repository = anemone/airflow\nworker_container_tag = {pinned[16:]}\n" in config
    for where, pod in pods(documents).items():
        if where == "airflow-statsd":
            continue
        for container in [*(pod.get("initContainers") or ()), *pod["containers"]]:
            if container["name"] != "login":
                assert container["image"] == pinned, (where, container["name"])
            assert "/clean-logs" not in str(container), where


def test_each_component_knows_the_same(chart: str | None, values: dict[str, Any], environment: dict[str, str]) -> None:
    documents = rendered(chart, VALUES)
    for where, pod in pods(documents).items():
        for container in pod["containers"] if where != "airflow-statsd" else ():
            if "groomer" not in container["name"]:
                stated = {entry["name"]: entry.get("value") for entry in container["env"]}
                assert environment.items() <= stated.items(), where
                assert {entry["envName"] for entry in values["secret"]} <= set(stated), where


def test_the_components_reach_each_other_through_the_charts_policies(chart: str | None) -> None:
    documents = rendered(chart, VALUES)
    policies = {one["metadata"]["name"]: one["spec"] for one in documents if one["kind"] == "NetworkPolicy"}
    (ingress,) = policies["airflow-api-server-policy"]["ingress"]
    assert {"podSelector": {"matchLabels": {"tier": "airflow"}}} in ingress["from"]
    assert ingress["ports"] == [{"port": 8080}]
    labels = {
        one["metadata"]["name"]: one["spec"]["template"]["metadata"]["labels"]
        for one in documents
        if one["kind"] == "Deployment"
    }
    assert all(found["tier"] == "airflow" for found in labels.values())
    (monitor,) = [
        one
        for one in yaml.safe_load_all((KUBERNETES / "monitoring" / "monitors.yaml").read_text())
        if one["metadata"]["name"] == "airflow"
    ]
    (service,) = [one for one in documents if one["kind"] == "Service" and "statsd" in one["metadata"]["name"]]
    assert monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    assert monitor["spec"]["endpoints"][0]["port"] in [port["name"] for port in service["spec"]["ports"]]
