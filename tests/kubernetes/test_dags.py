"""`customize` and `release` with Airflow itself in a pod, as the service account that its chart gives it."""

from __future__ import annotations

import json
import os
import re
from typing import Any

import httpx
import pytest

from include.artifacts.s3 import Access, Bucket
from include.artifacts.store import Store
from include.home import PROJECT
from tests.kubernetes.namespace import AIRFLOW_IMAGE, Namespace, pod, wait_for
from tests.kubernetes.task import Task

RECIPE = "demo/0.8M_lora_cpu"


@pytest.fixture(scope="module")
def data(namespace: Namespace) -> str:
    """A data set of somebody's, beside the store."""
    section = {"job": "generate", "config": {"variant": "train", "rows": 4000, "seed": 1}}
    store, name = Store.of(Task("data", section, refresh=False).follow())
    root = f"{os.environ['ANEMONE_STORE']}/data"
    Bucket(root, Access()).put("good.jsonl", store.read_bytes(name, "data.jsonl"))
    return f"{root}/good.jsonl"


@pytest.fixture(scope="module")
def airflow(namespace: Namespace) -> None:
    """The service accounts and roles of Airflow's components."""
    for file in ("service-accounts", "rbac"):
        namespace.kubectl("apply", "--filename", f"{PROJECT}/include/deploy/kubernetes/airflow/{file}.yaml")


@pytest.fixture(scope="module")
def customized(namespace: Namespace, airflow: None, data: str) -> dict[str, str]:
    """State of each task of a run of `customize`."""
    return states(namespace, "customize", {"data": data, "recipe": RECIPE})


def states(namespace: Namespace, dag: str, conf: dict[str, Any], seconds: float = 1800) -> dict[str, str]:
    """Run a DAG to its end, and tell the last state of each of its tasks."""
    name = f"airflow-{dag}"
    namespace.create(_airflow(namespace, name, dag, conf))
    wait_for(lambda: namespace.phase(name) in ("Succeeded", "Failed"), seconds, lambda: namespace.log(name)[-6000:])
    log = namespace.log(name)
    found = re.search(r"^STATES (.*)$", log, re.MULTILINE)
    assert found, log[-6000:]
    ended = json.loads(found[1])
    assert set(ended.values()) <= {"success", "skipped"}, f"{ended}\n{log[-12000:]}"
    return ended


def _airflow(namespace: Namespace, name: str, dag: str, conf: dict[str, Any]) -> dict[str, Any]:
    run = f"""
import json
from airflow.dag_processing.dagbag import DagBag
run = DagBag("/opt/anemone/dags/{dag}.py").get_dag("{dag}").test(run_conf=json.loads('''{json.dumps(conf)}'''))
print("STATES", json.dumps({{ti.task_id: str(ti.state) for ti in run.get_task_instances()}}))
"""
    given = pod(
        name,
        AIRFLOW_IMAGE,
        ["sh", "-c", 'airflow db migrate >/scratch/migrate.log 2>&1 && exec python -c "$RUN"'],
        memory="3Gi",
        serviceAccountName="airflow-worker",
        automountServiceAccountToken=True,
    )
    container = given["spec"]["containers"][0]
    variables = {
        "RUN": run,
        "AIRFLOW_HOME": "/scratch/airflow",
        # The nodes of a test are busy.
        "AIRFLOW__CORE__DAGBAG_IMPORT_TIMEOUT": "300",
        "AIRFLOW_CONN_KUBERNETES_DEFAULT": '{"conn_type": "kubernetes", "extra": {"in_cluster": true}}',
        "AWS_ENDPOINT_URL_S3": namespace.s3_endpoint,
    }
    for key in ("PLATFORM", "NAMESPACE", "STORE", "JOBS_IMAGE", "SERVING_IMAGE"):
        variables[f"ANEMONE_{key}"] = os.environ[f"ANEMONE_{key}"]
    variables["ANEMONE_S3_ENDPOINT"] = namespace.s3_endpoint
    variables["AWS_DEFAULT_REGION"] = os.environ["AWS_DEFAULT_REGION"]
    container["env"] += [{"name": key, "value": value} for key, value in variables.items()]
    for key, where in (("AWS_ACCESS_KEY_ID", "access-key"), ("AWS_SECRET_ACCESS_KEY", "secret-key")):
        reference = {"secretKeyRef": {"name": "store-credentials", "key": where}}
        container["env"].append({"name": key, "valueFrom": reference})
    container["volumeMounts"].append({"name": "token", "mountPath": "/etc/anemone/serving", "readOnly": True})
    token = {"secretName": "serving-token", "defaultMode": 0o440}
    given["spec"]["volumes"].append({"name": "token", "secret": token})
    # The network policy of the canary controller knows Airflow's components by it.
    given["metadata"]["labels"]["tier"] = "airflow"
    return given


def test_customize_registers_a_candidate_with_every_job_as_a_pod(
    namespace: Namespace, customized: dict[str, str], artifacts: Store
) -> None:
    jobs = ("ingest", "base", "heldout", "curate", "check", "finetune", "merge", "evaluate", "register", "report")
    assert {task for task in jobs if customized.get(task) == "success"} == set(jobs)
    for prefix in ("finetune", "evaluate", "register"):
        assert any(artifacts.manifest(name) for name in artifacts.names(prefix)), prefix
    assert not namespace.listed("pod", "app.kubernetes.io/name=anemone-job"), "a job's pod was left"


def test_release_brings_the_candidate_to_the_traffic(
    namespace: Namespace, customized: dict[str, str], serving: str
) -> None:
    ended = states(namespace, "release", {"recipe": RECIPE})
    assert (ended["engine"], ended["canary"], ended["promote"]) == ("success", "success", "success")
    ask = {"model": "kubectl", "messages": [{"role": "user", "content": "list the pods in staging"}], "max_tokens": 24}
    answer = httpx.post(f"{serving}/v1/chat/completions", json=ask, timeout=60, trust_env=False)
    assert answer.status_code == 200, answer.text
    assert answer.json()["choices"][0]["message"]["content"]
