"""Every form is what a cluster takes, and says of itself what the operator asks."""

from __future__ import annotations

import copy
import json

import pytest

from operators.kubernetes.workloads import PORT, SERVICE, TRAINING, WORKLOADS
from tests.include.deploy.test_kubernetes import VERSIONS, check_custom

NAME = "anemone-finetune-0123456789abcdef"
POD = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {"name": NAME, "namespace": "anemone", "labels": {"a": "b"}, "annotations": {"anemone/spec": "s3://s"}},
    "spec": {
        "restartPolicy": "Never",
        "priorityClassName": "training",
        "terminationGracePeriodSeconds": 120,
        "serviceAccountName": "jobs",
        "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
        "containers": [
            {
                "name": "base",
                "image": "anemone/jobs:0.1.0",
                "command": ["python", "-m", "jobs.finetune", "--spec", "s3://s"],
                "env": [{"name": "A", "value": "1"}],
                "resources": {"limits": {"nvidia.com/gpu": "8"}, "requests": {"cpu": "4", "nvidia.com/gpu": "8"}},
                "terminationMessagePolicy": "FallbackToLogsOnError",
                "securityContext": {"readOnlyRootFilesystem": True},
            }
        ],
    },
}


def everything(form):
    """All objects of a training of two nodes with eight processes each."""
    template = form.pod(NAME, copy.deepcopy(POD))
    others = [body for _, body in [*form.before(NAME, template), *form.after(NAME, template)]]
    return [form.render(NAME, template, nodes=2, processes=8), *others]


def template_of(document):
    match document["kind"]:
        case "Job":
            return document["spec"]["template"]
        case "TrainingRuntime":
            (node,) = document["spec"]["template"]["spec"]["replicatedJobs"]
            return node["template"]["spec"]["template"]
        case "PyTorchJob":
            return document["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]
    return None


@pytest.mark.parametrize("version", VERSIONS)
def test_the_floor_is_what_every_version_of_kubernetes_takes(version):
    validate = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed").validate
    documents = everything(WORKLOADS["job"])
    assert [document["kind"] for document in documents] == ["Job", "Service"]
    for document in documents:
        validate(document, version, strict=True)


@pytest.mark.parametrize(
    ("form", "kinds"), [("trainjob", ["TrainJob", "TrainingRuntime"]), ("pytorchjob", ["PyTorchJob"])]
)
def test_the_other_forms_are_what_their_controllers_take(form, kinds):
    documents = everything(WORKLOADS[form])
    assert [document["kind"] for document in documents] == kinds
    for document in documents:
        check_custom(document)


def test_a_trainjobs_jobset_is_never_deleted_by_itself():
    """Trainer 2.3 would create the JobSet of a failed TrainJob again, and train again (kubeflow/trainer#3737)."""
    (runtime,) = [found for found in everything(WORKLOADS["trainjob"]) if found["kind"] == "TrainingRuntime"]
    assert "ttlSecondsAfterFinished" not in json.dumps(runtime)
    for form in ("job", "pytorchjob"):
        assert "ttlSecondsAfterFinished" in json.dumps(everything(WORKLOADS[form]))


@pytest.mark.parametrize("form", WORKLOADS)
def test_each_node_is_the_whole_pod_and_carries_the_trainings_name(form):
    documents = everything(WORKLOADS[form])
    for document in documents:
        assert document["metadata"]["name"] == NAME
        assert document["metadata"]["labels"] == {"a": "b", TRAINING: NAME}
    (template,) = [found for document in documents if (found := template_of(document))]
    assert template["metadata"]["labels"] == {"a": "b", TRAINING: NAME}
    assert "name" not in template["metadata"] and "namespace" not in template["metadata"]
    for key in ("priorityClassName", "terminationGracePeriodSeconds", "serviceAccountName", "tolerations"):
        assert template["spec"][key] == POD["spec"][key]
    (container,) = template["spec"]["containers"]
    assert container["name"] == WORKLOADS[form].container
    for key in ("image", "command", "resources", "terminationMessagePolicy", "securityContext"):
        assert container[key] == POD["spec"]["containers"][0][key]


def test_only_the_floor_says_who_is_who_by_itself():
    """Kubeflow's controllers set these variables, and Trainer's webhook refuses them from others."""
    (container,) = template_of(everything(WORKLOADS["job"])[0])["spec"]["containers"]
    given = {entry["name"]: entry.get("value") for entry in container["env"]}
    assert given["PET_NNODES"] == "2"
    assert given["PET_MASTER_ADDR"] == f"{NAME}-0.{NAME}"
    assert given["PET_MASTER_PORT"] == str(PORT)
    (rank,) = [entry for entry in container["env"] if entry["name"] == "PET_NODE_RANK"]
    assert "job-completion-index" in rank["valueFrom"]["fieldRef"]["fieldPath"]
    for form in ("trainjob", "pytorchjob"):
        (template,) = [found for document in everything(WORKLOADS[form]) if (found := template_of(document))]
        assert [entry["name"] for entry in template["spec"]["containers"][0]["env"]] == ["A"]


def test_no_pod_of_the_floor_is_replaced_and_node_0_is_found_before_it_is_ready():
    job, service = everything(WORKLOADS["job"])
    assert job["spec"]["backoffLimit"] == 0
    assert job["spec"]["completions"] == job["spec"]["parallelism"] == 2
    assert job["spec"]["template"]["spec"]["subdomain"] == service["metadata"]["name"]
    assert service["spec"]["publishNotReadyAddresses"] is True
    assert service["spec"]["selector"].items() <= job["spec"]["template"]["metadata"]["labels"].items()
    ((kind, _),) = WORKLOADS["job"].after(NAME, WORKLOADS["job"].pod(NAME, copy.deepcopy(POD)))
    assert kind == SERVICE


@pytest.mark.parametrize(
    ("form", "condition", "verdict"),
    [
        ("job", {"type": "Complete", "status": "True"}, "succeeded"),
        ("job", {"type": "SuccessCriteriaMet", "status": "True"}, None),
        ("job", {"type": "FailureTarget", "status": "True"}, None),
        ("job", {"type": "Failed", "status": "True"}, "failed"),
        ("trainjob", {"type": "Complete", "status": "False"}, None),
        ("trainjob", {"type": "Failed", "status": "True"}, "failed"),
        ("pytorchjob", {"type": "Succeeded", "status": "True"}, "succeeded"),
        ("pytorchjob", {"type": "Running", "status": "True"}, None),
    ],
)
def test_how_a_training_stands(form, condition, verdict):
    assert WORKLOADS[form].ended({"status": {"conditions": [condition]}}) == verdict
    assert WORKLOADS[form].ended({}) is None
