from __future__ import annotations

import os
import subprocess
import sys

import pytest
from airflow.sdk import DAG

from include.home import PROJECT
from include.platforms import load_platform
from operators import job as job_task
from operators import stages
from operators.defaults import RETRIES
from operators.kubernetes.pod_operator import PodJobOperator
from operators.local.operator import LocalJobOperator

SECTION = {"job": "generate", "config": {}}


@pytest.fixture
def cluster(monkeypatch):
    for name in ("ANEMONE_STORE", "ANEMONE_S3_REGION"):
        monkeypatch.setenv(name, "s3://bucket/anemone")
    for name in ("JOBS", "SERVING", "NEMO"):
        monkeypatch.setenv(f"ANEMONE_{name}_IMAGE", "image@sha256:" + "0" * 64)
    load_platform.cache_clear()
    platform = load_platform("eks-h100")
    load_platform.cache_clear()
    for module in (job_task, stages):
        monkeypatch.setattr(module, "current_platform", lambda: platform)
    return platform


def test_a_cluster_runs_stages_as_pods_those_with_gpus_in_their_pool(cluster):
    finetune, curate = (stages.stage(name, SECTION) for name in ("finetune", "curate"))
    assert isinstance(finetune, PodJobOperator) and finetune.deferrable
    assert (finetune.pool, curate.pool) == ("gpu", "default_pool")
    assert stages.stage("finetune", SECTION, pool="other").pool == "other"


def test_a_training_outlives_more_preemptions_than_others_outlive_faults(cluster):
    with DAG("some", default_args=RETRIES):
        finetune, curate = (stages.stage(name, SECTION) for name in ("finetune", "curate"))
    assert (finetune.retries, curate.retries) == (10, RETRIES["retries"])
    assert stages.stage("finetune", SECTION, retries=1).retries == 1


def test_a_laptop_runs_them_as_processes():
    assert isinstance(stages.stage("finetune", SECTION), LocalJobOperator)


def test_every_dag_parses_on_a_cluster(tmp_path):
    program = """
import runpy, sys
from pathlib import Path
from airflow.serialization.serialized_objects import DagSerialization
for path in sys.argv[1:]:
    dag = runpy.run_path(path)[Path(path).stem]()
    DagSerialization.to_dict(dag)
    print(dag.dag_id, *{type(task).__name__ for task in dag.tasks})
"""
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith("ANEMONE_")},
        "ANEMONE_PLATFORM": "cpu-cluster",
        "ANEMONE_STORE": "s3://bucket/anemone",
        "AIRFLOW_HOME": str(tmp_path),
        "PYTHONPATH": str(PROJECT),
    }
    files = sorted(map(str, ((PROJECT / "dags" / f"{name}.py") for name in ("customize", "release"))))
    done = subprocess.run(
        [sys.executable, "-c", program, *files],
        cwd=PROJECT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    classes = {line.split()[0]: line.split()[1:] for line in done.stdout.splitlines() if line}
    assert "DistributedJobOperator" in classes["customize"] and "DistributedJobOperator" in classes["release"]
