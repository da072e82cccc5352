"""The pods of every platform, job and size: valid, locked down, and for review the golden files."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from kubernetes.client import ApiClient

from include.errors import ConfigurationError
from include.job_plan import JobPlan
from include.platforms import load_platform
from include.recipes import recipe_names, resolve
from include.specs import spec_class
from operators import job as job_task
from operators.kubernetes import pod_operator as pods
from operators.kubernetes.pod_spec import job_pod

PLATFORMS = ("cpu-cluster", "eks-a100", "eks-h100")
VERSIONS = ("1.30", "1.31", "1.32", "1.33", "1.34")
GOLDEN = Path(__file__).parent / "golden"
URI = "s3://bucket/anemone/specs/some/0123456789ab.json"
VARIABLES = {
    "ANEMONE_STORE": "s3://bucket/anemone",
    "ANEMONE_S3_REGION": "eu-central-1",
    "ANEMONE_JOBS_IMAGE": "registry.example/jobs@sha256:" + "0" * 64,
    "ANEMONE_SERVING_IMAGE": "registry.example/serving@sha256:" + "1" * 64,
    "ANEMONE_NEMO_IMAGE": "registry.example/nemo@sha256:" + "2" * 64,
    "ANEMONE_COST_CENTRE": "ml-platform",
}


@pytest.fixture
def platforms(monkeypatch):
    for name in [name for name in os.environ if name.startswith("ANEMONE_")]:
        monkeypatch.delenv(name)
    for name, value in VARIABLES.items():
        monkeypatch.setenv(name, value)
    load_platform.cache_clear()
    found = {name: load_platform(name) for name in PLATFORMS}
    load_platform.cache_clear()
    return found


def sections():
    """One section of each job, from the recipes, and of those that only DAGs start."""
    serving = {"controller_url": "http://c", "token_file": "/etc/anemone/serving/token"}
    found = {"promote": {"job": "promote", "config": {"model": "m", **serving}}}
    for recipe in recipe_names():
        for section in resolve(recipe).plan().values():
            if isinstance(section, dict) and "job" in section:
                found.setdefault(section["job"], section)
    return found


def specs():
    """A spec of each job: only its verb and configuration count for the pod."""
    for job, section in sections().items():
        cls = spec_class(job)
        config = section["config"] if job != "ingest" else {**section["config"], "source": "s3://bucket/data.jsonl"}
        fields = {"job": job, "config": cls.model_fields["config"].annotation.model_validate(config)}
        output = SimpleNamespace(name=f"{job}-0", store="s3://bucket/anemone", code="0")
        yield cls.model_construct(**fields, inputs=None, output=output)


def rendered(platform, spec, size=None, monkeypatch=None):
    """As the operator sends it to the API server."""
    section = {"job": spec.job, "config": {}, **({"size": size} if size else {})}
    monkeypatch.setattr(job_task, "current_platform", lambda: platform)
    operator = pods.PodJobOperator(task_id="task", section=section)
    operator._plan, operator._spec_uri = JobPlan(spec, None), URI
    ti = SimpleNamespace(dag_id="customize", task_id="task", run_id="manual__1", map_index=-1, try_number=1)
    context = {"ti": ti, "run_id": ti.run_id, "dag": None, "params": {"recipe": "demo/0.8M_lora_cpu"}}
    return ApiClient().sanitize_for_serialization(operator.build_pod_request_obj(context, dry_run=True))


def environment(pod):
    (container,) = pod["spec"]["containers"]
    return {entry["name"]: entry.get("value", entry.get("valueFrom")) for entry in container["env"]}


def test_every_pod_of_every_platform_job_and_size_is_valid(platforms, monkeypatch):
    validate = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed").validate
    found = {}
    for platform in platforms.values():
        for spec in specs():
            for size in (None, *platform.cluster.sizes):
                pod = rendered(platform, spec, size, monkeypatch)
                (container,) = pod["spec"]["containers"]
                # What differs in names and values only is valid or not for the same reason.
                shape = (platform.name, json.dumps(container["resources"]), json.dumps(pod["spec"]["volumes"]))
                found.setdefault(shape, pod)
    assert len(found) > 15
    for pod in found.values():
        for version in VERSIONS:
            validate(pod, version, strict=True)


def test_every_pod_is_locked_down_and_has_no_token(platforms, monkeypatch):
    for platform in platforms.values():
        for spec in specs():
            pod = rendered(platform, spec, monkeypatch=monkeypatch)["spec"]
            (container,) = pod["containers"]
            assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["runAsUser"] >= 10000
            assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
            assert pod["automountServiceAccountToken"] is pod["enableServiceLinks"] is False
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
                "readOnlyRootFilesystem": True,
            }
            assert {"/scratch", "/tmp"} <= {mount["mountPath"] for mount in container["volumeMounts"]}
            assert "memory" in container["resources"]["limits"] and "cpu" not in container["resources"]["limits"]
            assert pod["terminationGracePeriodSeconds"] == platform.grace_seconds


def test_what_a_size_saves_fits_into_its_grace_and_the_job_knows_it(platforms, monkeypatch):
    finetune = next(spec for spec in specs() if spec.job == "finetune")
    for size, grace in ((None, 120), ("gpu8", 900)):
        pod = rendered(platforms["eks-h100"], finetune, size, monkeypatch)
        assert pod["spec"]["terminationGracePeriodSeconds"] == grace
        assert environment(pod)["ANEMONE_GRACE_SECONDS"] == str(grace)


def test_several_nodes_know_how_long_a_machine_may_take(platforms, monkeypatch):
    finetune = next(spec for spec in specs() if spec.job == "finetune")
    cluster = platforms["eks-h100"].cluster
    assert "ANEMONE_GATHER_SECONDS" not in environment(rendered(platforms["eks-h100"], finetune, "gpu8", monkeypatch))
    several = finetune.model_copy(update={"config": finetune.config.model_copy(update={"nodes": 2})})
    variables = {
        e["name"]: e.get("value") for e in job_pod(several, URI, platforms["eks-h100"])["spec"]["containers"][0]["env"]
    }
    assert (
        int(variables["ANEMONE_GATHER_SECONDS"]) == cluster.schedule_timeout_seconds + cluster.startup_timeout_seconds
    )


def test_secrets_are_references_and_the_serving_token_is_for_those_who_ask(platforms, monkeypatch):
    platform = platforms["cpu-cluster"]
    for spec in specs():
        pod = rendered(platform, spec, monkeypatch=monkeypatch)
        assert environment(pod)["AWS_SECRET_ACCESS_KEY"] == {
            "secretKeyRef": {"name": "store-credentials", "key": "secret-key"}
        }
        mounted = [mount["mountPath"] for mount in pod["spec"]["containers"][0]["volumeMounts"]]
        assert ("/etc/anemone/serving" in mounted) is (spec.job == "promote")


def test_a_secret_takes_the_place_of_a_plain_value(platforms, monkeypatch):
    platform = platforms["cpu-cluster"]
    values = {**platform.environment, "AWS_SECRET_ACCESS_KEY": "planted-secret"}
    platform = platform.model_copy(update={"environment": values})
    assert "planted-secret" not in json.dumps(rendered(platform, next(specs()), monkeypatch=monkeypatch))


def test_gpus_efa_and_shared_memory_are_the_sizes(platforms, monkeypatch):
    finetune = next(spec for spec in specs() if spec.job == "finetune")
    for name, efa in (("eks-a100", "4"), ("eks-h100", "32")):
        pod = rendered(platforms[name], finetune, "gpu8", monkeypatch)["spec"]
        (container,) = pod["containers"]
        for kind in ("requests", "limits"):
            wanted = container["resources"][kind]
            assert (wanted["nvidia.com/gpu"], wanted["vpc.amazonaws.com/efa"]) == ("8", efa)
            assert wanted["hugepages-2Mi"] == "5120Mi"
        (shm,) = [volume for volume in pod["volumes"] if volume["name"] == "shm"]
        assert shm["emptyDir"]["medium"] == "Memory"
        assert container["image"] == VARIABLES["ANEMONE_NEMO_IMAGE"]
        for size, gpus in ((None, "1"), ("default", None)):
            smaller = rendered(platforms[name], finetune, size, monkeypatch)["spec"]["containers"][0]["resources"]
            assert smaller["limits"].get("nvidia.com/gpu") == gpus


def test_a_pod_knows_its_price_where_it_has_one(platforms, monkeypatch):
    finetune = next(spec for spec in specs() if spec.job == "finetune")
    prices = {
        size: environment(rendered(platforms["eks-h100"], finetune, size, monkeypatch)).get("ANEMONE_PRICE_PER_HOUR")
        for size in ("gpu8", "default")
    }
    assert prices == {"gpu8": "55.04", "default": None}


def test_an_unknown_size_names_the_nearest(platforms):
    with pytest.raises(ConfigurationError, match="size 'gpu9', which this platform lacks: did you mean 'gpu[18]'"):
        job_pod(next(specs()), URI, platforms["eks-h100"], size="gpu9")


def test_the_template_lies_below_what_the_platform_states(platforms, monkeypatch):
    platform = platforms["cpu-cluster"]
    template = {
        "metadata": {"annotations": {"sidecar.istio.io/inject": "false"}},
        "spec": {
            "dnsPolicy": "Default",
            "enableServiceLinks": True,
            "containers": [{"name": "base", "image": "other:1", "env": [{"name": "PROXY", "value": "http://p"}]}],
        },
    }
    cluster = platform.cluster.model_copy(update={"pod_template": template})
    pod = rendered(platform.model_copy(update={"cluster": cluster}), next(specs()), monkeypatch=monkeypatch)
    assert pod["metadata"]["annotations"]["sidecar.istio.io/inject"] == "false"
    assert pod["spec"]["dnsPolicy"] == "Default"
    assert environment(pod)["PROXY"] == "http://p"
    assert pod["spec"]["containers"][0]["image"] == VARIABLES["ANEMONE_JOBS_IMAGE"]
    assert pod["spec"]["enableServiceLinks"] is False


@pytest.mark.parametrize(
    ("name", "platform", "job", "size"),
    [
        ("cpu-promote", "cpu-cluster", "promote", None),
        ("gpu-finetune", "eks-a100", "finetune", None),
        ("gpu-efa-finetune", "eks-h100", "finetune", "gpu8"),
    ],
)
def test_the_golden_pods(platforms, monkeypatch, pytestconfig, name, platform, job, size):
    spec = next(spec for spec in specs() if spec.job == job)
    pod = rendered(platforms[platform], spec, size, monkeypatch)
    del pod["metadata"]["labels"]["airflow_version"]
    text = yaml.safe_dump(pod, sort_keys=True, width=120)
    path = GOLDEN / f"{name}.yaml"
    if pytestconfig.getoption("update_golden"):
        path.write_text(text)
    assert path.read_text() == text, "review the change, then run this test with --update-golden"
