"""The YAML for a cluster: the API servers of all supported versions take every object, and they fit together."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from include.home import PROJECT
from include.platforms import load_platform

DEPLOY = PROJECT / "include" / "deploy"
ROOT = DEPLOY / "kubernetes"
CRDS = PROJECT / "tests" / "kubernetes" / "crds"
GOLDEN = PROJECT / "tests" / "kubernetes" / "golden"
VERSIONS = ("1.30", "1.31", "1.32", "1.33", "1.34")
TIERS = ("stable", "canary")
IMAGES = {"anemone/jobs:0.1.0", "anemone/serving:0.1.0"}
OVERLAYS: dict[str, tuple[list[str], list[str]]] = {
    "serving": (["serving"], []),
    "ephemeral": (["serving"], ["ephemeral"]),
    "gateway": (["serving"], ["gateway"]),
    "airflow": (["airflow"], []),
    "kubeflow": (["airflow"], ["kubeflow"]),
    "monitoring": (["monitoring"], []),
    "mlflow": (["mlflow"], []),
    "bare": (["bare"], []),
    "eks": (["serving", "mlflow", "airflow"], ["gateway", "eks"]),
}
"""What is built of them: resources and components."""

kubectl = pytest.mark.skipif(shutil.which("kubectl") is None, reason="there is no kubectl to build overlays with")


def objects(*folders: str) -> Iterator[dict[str, Any]]:
    for folder in folders or ("",):
        for path in sorted((ROOT / folder).rglob("*.yaml")):
            for document in yaml.safe_load_all(path.read_text()):
                if not document["apiVersion"].startswith("kustomize.config.k8s.io/"):
                    yield document


def name(document: dict[str, Any]) -> str:
    return f"{document['kind']}/{document['metadata']['name']}"


def closed(schema: Any) -> Any:
    """The schema of a custom resource that takes no key it does not name, as `kubectl --validate=strict` does."""
    if isinstance(schema, list):
        return [closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: closed(value) for key, value in schema.items()}
    if "properties" in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
        found.setdefault("additionalProperties", False)
    if schema.get("x-kubernetes-int-or-string"):
        found = {"type": ["integer", "string"]}
    return found


def custom_schemas() -> dict[tuple[str, str], Any]:
    documents = [json.loads(path.read_text()) for path in CRDS.glob("*.json")]
    return {(crd["apiVersion"], crd["kind"]): closed(crd["schema"]) for crd in documents if "schema" in crd}


def check_custom(document: dict[str, Any]) -> None:
    schema = custom_schemas()[document["apiVersion"], document["kind"]]
    # The schema of `metadata` is the API server's own, not the resource's.
    bare = {key: value for key, value in document.items() if key != "metadata"}
    jsonschema.Draft202012Validator(_without_metadata(schema)).validate(bare)


def _without_metadata(schema: dict[str, Any]) -> dict[str, Any]:
    return {**schema, "properties": {key: value for key, value in schema["properties"].items() if key != "metadata"}}


def is_custom(document: dict[str, Any]) -> bool:
    return (document["apiVersion"], document["kind"]) in custom_schemas()


def built(folder: Path, overlay: str) -> list[dict[str, Any]]:
    """What kustomize makes of an overlay; built in a copy, since it takes no absolute path."""
    resources, components = OVERLAYS[overlay]
    shutil.copytree(ROOT, folder / "kubernetes")
    kustomization = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": [f"../kubernetes/{name}" for name in resources],
        "components": [f"../kubernetes/{name}" for name in components],
    }
    (folder / "overlay").mkdir()
    (folder / "overlay" / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    command = ["kubectl", "kustomize", str(folder / "overlay")]
    return list(yaml.safe_load_all(subprocess.run(command, capture_output=True, text=True, check=True).stdout))


@kubectl
def test_the_overlay_of_the_docs_names_every_image_and_every_bucket(tmp_path: Path) -> None:
    page = (PROJECT / "docs" / "cluster.md").read_text(encoding="utf-8")
    (overlay,) = re.findall(r"^```yaml\n(apiVersion: kustomize.*?)^```", page, re.MULTILINE | re.DOTALL)
    shutil.copytree(ROOT, tmp_path / "kubernetes")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "kustomization.yaml").write_text(overlay)
    command = ["kubectl", "kustomize", str(tmp_path / "mine")]
    made = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    images = set(re.findall(r"image: (\S+)", made))
    assert images == {f"registry.example.com/{image}" for image in IMAGES}
    assert set(re.findall(r"s3://\S+", made)) == {"s3://my-bucket/store", "s3://my-bucket/mlflow"}
    assert "http://store:9000" not in made


def test_the_docs_name_every_place_with_a_bucket_or_an_image_of_the_values() -> None:
    page = (PROJECT / "docs" / "cluster.md").read_text(encoding="utf-8")
    values = (DEPLOY / "helm" / "airflow-values.yaml").read_text(encoding="utf-8")
    lines = values.splitlines()
    places = set()
    for number, line in enumerate(lines):
        if found := re.match(r"\s+(\w+): (s3://|http://store|anemone/(airflow|jobs|serving|nemo)\b)", line):
            # A variable, or an item of a list, is named by the line before.
            key = found[1]
            places.add(lines[number - 1].split(": ")[-1].strip() if key in ("value", "image") else key)
    named = {"repository": "images.airflow"}
    assert {"ANEMONE_STORE", "ANEMONE_JOBS_IMAGE", "login", "remote_base_log_folder", "repository"} <= places
    assert [place for place in places if f"`{named.get(place, place)}`" not in page] == []


@pytest.mark.parametrize("version", VERSIONS)
def test_every_plain_object_is_valid(version: str) -> None:
    validate = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed").validate
    plain = [document for document in objects() if not is_custom(document)]
    assert len(plain) > 15
    for document in plain:
        validate(document, version, strict=True)


def test_every_custom_object_is_valid() -> None:
    custom = [document for document in objects() if is_custom(document)]
    assert {document["kind"] for document in custom} == {"HTTPRoute", "PodMonitor", "PrometheusRule", "ServiceMonitor"}
    for document in custom:
        check_custom(document)


def test_a_misspelt_key_of_a_custom_object_is_found() -> None:
    (route,) = [document for document in objects() if document["kind"] == "HTTPRoute"]
    route["spec"]["rules"][0]["backendRefs"][0]["wieght"] = 1
    with pytest.raises(jsonschema.ValidationError, match="wieght"):
        check_custom(route)


def pods() -> Iterator[tuple[str, dict[str, Any]]]:
    for document in objects():
        if document["kind"] == "Deployment":
            yield name(document), document["spec"]["template"]["spec"]


def test_no_pod_has_more_rights_than_it_needs() -> None:
    found = dict(pods())
    assert {f"Deployment/{name}" for name in ("triton", "router", "canary-controller", "mlflow")} <= set(found)
    for where, pod in found.items():
        assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["seccompProfile"], where
        assert pod["automountServiceAccountToken"] is False, where
        assert pod["enableServiceLinks"] is False, where
        for container in pod["containers"]:
            context = container["securityContext"]
            assert context["readOnlyRootFilesystem"] and not context["allowPrivilegeEscalation"], where
            assert context["capabilities"] == {"drop": ["ALL"]}, where
            assert "memory" in container["resources"]["limits"], where


def test_each_pod_outlives_its_own_drain() -> None:
    for where, pod in pods():
        for container in pod["containers"]:
            pause = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
            drains = [
                float(argument.partition("=")[2])
                for argument in container["args"]
                if argument.startswith(("--exit-seconds=", "--drain-seconds=", "--leave-seconds="))
            ]
            assert pod["terminationGracePeriodSeconds"] >= pause + sum(drains), where


def test_what_the_commands_are_told_is_what_the_programs_take() -> None:
    """Each flag exists, and each address names a Service with that port."""
    services = {
        document["metadata"]["name"]: {port["port"] for port in document["spec"]["ports"]}
        for document in objects("serving/router.yaml", "serving") if document["kind"] == "Service"
    }  # fmt: skip
    for tier in TIERS:
        services[f"triton-{tier}"], services[f"triton-agents-{tier}"] = services["triton"], services["triton-agents"]
    sources = {
        "jobs.serving.triton": "jobs/serving/triton/__main__.py",
        "jobs.serving.triton.agent": "jobs/serving/triton/agent.py",
        "jobs.serving.router": "jobs/serving/router/__main__.py",
        "jobs.serving.canary": "jobs/serving/canary/__main__.py",
    }
    flags_by_loop = {"--http-port", "--grpc-port", "--metrics-port"}
    seen = set()
    for where, pod in pods():
        for container in pod["containers"]:
            if container["command"][0] == "mlflow":
                continue
            module = container["command"][2]
            source = (PROJECT / sources[module]).read_text()
            seen.add(module)
            for argument in container["args"]:
                flag, _, value = argument.partition("=")
                assert f'"{flag}"' in source or flag in flags_by_loop, f"{where}: {module} has no {flag}"
                if address := re.fullmatch(r"(?:http://)?([a-z][a-z-]*):(\d+)", value):
                    assert int(address[2]) in services[address[1]], f"{where}: {value}"
    assert seen == set(sources)


@kubectl
@pytest.mark.parametrize("overlay", sorted(OVERLAYS))
def test_the_golden_overlays(overlay: str, tmp_path: Path, pytestconfig: pytest.Config) -> None:
    made = yaml.safe_dump_all(built(tmp_path, overlay), sort_keys=True)
    golden = GOLDEN / f"{overlay}.yaml"
    if pytestconfig.getoption("update_golden"):
        golden.write_text(made)
    assert golden.read_text() == made, "review the change, then run this test with --update-golden"


@kubectl
@pytest.mark.parametrize("overlay", sorted(OVERLAYS))
def test_every_image_has_a_tag_and_every_object_one_namespace(overlay: str, tmp_path: Path) -> None:
    for document in built(tmp_path, overlay):
        assert document["metadata"]["namespace"] == "anemone"
        if document["kind"] == "Deployment":
            for container in document["spec"]["template"]["spec"]["containers"]:
                assert container["image"] in IMAGES and container["imagePullPolicy"] == "IfNotPresent"


@kubectl
@pytest.mark.parametrize(("overlay", "stateful"), [("ephemeral", 2), ("bare", 3)])
def test_a_cluster_without_volumes_gets_none(overlay: str, stateful: int, tmp_path: Path) -> None:
    found = built(tmp_path, overlay)
    assert not [document for document in found if document["kind"] == "PersistentVolumeClaim"]
    states = [
        volume
        for document in found if document["kind"] == "Deployment"
        for volume in document["spec"]["template"]["spec"]["volumes"] if volume["name"] == "state"
    ]  # fmt: skip
    assert len(states) == stateful and all("emptyDir" in volume for volume in states)


@kubectl
def test_the_bare_overlay_is_what_the_platform_expects_beside_airflow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANEMONE_STORE", "s3://anemone/store")
    load_platform.cache_clear()
    try:
        platform = load_platform("cpu-cluster")
    finally:
        load_platform.cache_clear()
    found = built(tmp_path, "bare")
    named = {name(document) for document in found}
    addresses = {
        f"http://{document['metadata']['name']}:{port['port']}"
        for document in found if document["kind"] == "Service"
        for port in document["spec"].get("ports", ())
    }  # fmt: skip
    asked = [platform.serving.url, platform.serving.controller_url, platform.environment["MLFLOW_TRACKING_URI"]]
    assert {re.sub(r"\.anemone\.svc", "", url) for url in asked} <= addresses
    assert {f"ServiceAccount/{account}" for account in ("airflow-worker", "airflow-triggerer")} <= named
    (serving,) = [one for one in found if name(one).startswith("ConfigMap/serving")]
    assert serving["data"]["ANEMONE_STORE"] == platform.store
    for variable in ("AWS_ENDPOINT_URL_S3", "AWS_DEFAULT_REGION"):
        assert serving["data"][variable] == platform.environment[variable]


@kubectl
def test_whoever_reaches_the_store_is_a_cloud_identity_on_eks(tmp_path: Path) -> None:
    found = built(tmp_path, "eks")
    roles = {
        document["metadata"]["name"]: document["metadata"].get("annotations", {}).get("eks.amazonaws.com/role-arn")
        for document in found if document["kind"] == "ServiceAccount"
    }  # fmt: skip
    keyed = {
        document["spec"]["template"]["spec"]["serviceAccountName"]
        for document in found if document["kind"] == "Deployment"
        for container in document["spec"]["template"]["spec"]["containers"]
        if any(entry["name"] == "AWS_SECRET_ACCESS_KEY" for entry in container.get("env", ()))
    }  # fmt: skip
    assert keyed == {"anemone-serving", "canary-controller"}
    assert all(roles[account] for account in keyed | {"anemone-jobs", "airflow-worker", "airflow-triggerer"})
    assert roles["airflow-scheduler"] is None


@kubectl
def test_only_the_controller_of_a_gateway_may_talk_to_the_kubernetes_api(tmp_path: Path) -> None:
    found = {name(document): document for document in built(tmp_path, "gateway")}
    pods = {where: one["spec"]["template"]["spec"] for where, one in found.items() if where.startswith("Deployment/")}
    talking = {where for where, pod in pods.items() if pod["automountServiceAccountToken"]}
    assert talking == {"Deployment/canary-controller"}
    controller = pods["Deployment/canary-controller"]
    assert controller["serviceAccountName"] == "canary-controller"
    arguments = controller["containers"][0]["args"]
    route = found["HTTPRoute/models"]
    assert f"--gateway-route={route['metadata']['name']}" in arguments
    assert len({document["metadata"]["namespace"] for document in found.values()}) == 1
    (rule,) = route["spec"]["rules"]
    assert f"--gateway-rule={rule['name']}" in arguments
    services = [ref["name"] for ref in rule["backendRefs"]]
    at = arguments.index("--gateway-services")
    assert arguments[at + 1 : at + 3] == services and all(f"Service/{service}" in found for service in services)
    (granted,) = found["Role/canary-controller"]["rules"]
    assert granted["resourceNames"] == [route["metadata"]["name"]] and set(granted["verbs"]) == {"get", "patch"}


@kubectl
@pytest.mark.parametrize("tier", TIERS)
def test_a_tiers_services_and_budget_select_its_own_pods_only(tier: str, tmp_path: Path) -> None:
    found = {name(document): document for document in built(tmp_path, "serving")}
    labels = found[f"Deployment/triton-{tier}"]["spec"]["template"]["metadata"]["labels"]
    (other,) = set(TIERS) - {tier}
    others = found[f"Deployment/triton-{other}"]["spec"]["template"]["metadata"]["labels"]
    selectors = [
        found[f"Service/triton-{tier}"]["spec"]["selector"],
        found[f"Service/triton-agents-{tier}"]["spec"]["selector"],
        found[f"PodDisruptionBudget/triton-{tier}"]["spec"]["selector"]["matchLabels"],
    ]
    for selector in selectors:
        assert selector.items() <= labels.items() and not selector.items() <= others.items()
