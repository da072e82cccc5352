from __future__ import annotations

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import yaml
from airflow.sdk import DAG, Asset
from airflow.sdk.exceptions import AirflowFailException

from include import platforms
from include.announcements import Announcements
from include.errors import ConfigurationError
from include.home import PROJECT
from include.platforms import load_platform
from include.release.candidates import AnnouncedCandidate
from operators import CANDIDATE, DistributedJobOperator, LocalJobOperator, stage
from operators.defaults import RETRIES

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
    for module in ("job", "stages"):
        monkeypatch.setattr(f"operators.{module}.current_platform", lambda: platform)
    return platform


def test_a_cluster_runs_stages_as_pods_those_with_gpus_in_their_pool(cluster):
    finetune, curate = (stage(name, SECTION) for name in ("finetune", "curate"))
    assert isinstance(finetune, DistributedJobOperator) and finetune.deferrable
    assert (finetune.pool, curate.pool) == ("gpu", "default_pool")
    assert stage("finetune", SECTION, pool="other").pool == "other"


def test_a_training_outlives_more_preemptions_than_others_outlive_faults(cluster):
    with DAG("some", default_args=RETRIES):
        finetune, curate = (stage(name, SECTION) for name in ("finetune", "curate"))
    assert (finetune.retries, curate.retries) == (10, RETRIES["retries"])
    assert stage("finetune", SECTION, retries=1).retries == 1


def test_a_laptop_runs_them_as_processes():
    assert isinstance(stage("finetune", SECTION), LocalJobOperator)


@pytest.fixture
def own_platform(tmp_path, store, monkeypatch):
    """Write a platform of a user's own, named `mine`, with some keys of the laptop's changed, and choose it."""

    def write(**changes):
        laptop = yaml.safe_load((PROJECT / "include/platforms/laptop.yaml").read_text())
        document = {**laptop, "name": "mine", "store": store.root, **changes}
        (tmp_path / "mine.yaml").write_text(yaml.safe_dump(document))
        monkeypatch.setattr(platforms, "_FOLDER", tmp_path)
        monkeypatch.setenv("ANEMONE_PLATFORM", "mine")
        load_platform.cache_clear()

    yield write
    load_platform.cache_clear()


SOMEWHERE = """
from operators import JobOperator, record_failure


class SomewhereJobOperator(JobOperator):
    @classmethod
    def platform_arguments(cls, platform, task_id):
        return {"pool": "somewhere"} if task_id == "finetune" else {}

    @record_failure
    def execute(self, context):
        plan = self.plan(context)
        manifest = self.reused(plan) or plan.conclude(65, "row 3 is broken")
        return self.announce(context, plan, manifest)
"""


def test_a_new_place_to_run_is_a_module_and_a_line_of_yaml(own_platform, tmp_path, monkeypatch):
    (tmp_path / "somewhere_operator.py").write_text(SOMEWHERE)
    monkeypatch.syspath_prepend(tmp_path)
    own_platform(operator="somewhere_operator.SomewhereJobOperator")
    finetune = stage("finetune", {"job": "generate", "config": {"variant": "heldout", "rows": 5}})
    assert type(finetune).__name__ == "SomewhereJobOperator"
    assert (finetune.pool, stage("curate", SECTION).pool) == ("somewhere", "default_pool")
    with pytest.raises(AirflowFailException, match="row 3 is broken"):
        finetune.execute({"run_id": "manual__1", "params": {}})


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"operator": "nowhere.JobOperator"}, "the platform mine names the operator nowhere.JobOperator, which cannot"),
        ({"operator": "operators.Nothing"}, "cannot be imported .*no attribute 'Nothing'.*: correct the key operator"),
        ({"operator": "operators.GateSensor"}, "is not a subclass of operators.JobOperator"),
        ({"operator": "operators.PodJobOperator"}, "the platform mine has no cluster"),
        (
            {"cluster": {"namespace": "n", "images": {}, "sizes": {"s": {"cpu": "1", "memory": "1Gi"}},
                         "stages": {"default": "s"}}},
            "has a section cluster, and its operator LocalJobOperator starts processes on Airflow's own machine",
        ),
    ],
)  # fmt: skip
def test_an_operator_that_cannot_run_there_is_refused_when_a_dag_is_parsed(own_platform, changes, says):
    own_platform(**changes)
    with pytest.raises(ConfigurationError, match=says):
        stage("curate", SECTION)


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
        # As Kubernetes sets it in every pod of a namespace with a Service called `anemone`.
        "ANEMONE_PORT": "tcp://10.0.0.1:80",
        "AIRFLOW_HOME": str(tmp_path),
        "PYTHONPATH": str(PROJECT),
    }
    files = sorted(map(str, (PROJECT / "dags").glob("*.py")))
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


REGISTERS = """
from operators import JobOperator


class RegistersOperator(JobOperator):
    def execute(self, context):
        plan = self.plan(context)
        return self.announce(context, plan, plan.committed())
"""


def test_a_candidate_is_written_down_before_its_event_is_sent(own_platform, tmp_path, monkeypatch, store, commit):
    """An event that is lost, or waits in Airflow, costs no candidate its release."""
    (tmp_path / "registers_operator.py").write_text(REGISTERS)
    monkeypatch.syspath_prepend(tmp_path)
    own_platform(operator="registers_operator.RegistersOperator")
    other = Asset("other")
    section = {"job": "generate", "config": {"variant": "heldout", "rows": 5}}
    register = stage("register", section, outlets=[CANDIDATE, other])
    context = {"run_id": "manual__1", "params": {}}
    name = register.plan(context).spec.output.name
    commit(name, {"candidate.json": "{}"}, job="generate")
    announcements = Announcements(store, AnnouncedCandidate)

    class Events(dict):
        def __missing__(self, outlet):
            assert len(announcements.pending()) == 1, outlet
            self[outlet.name] = event = SimpleNamespace()
            return event

    events = Events()
    uri = register.execute({**context, "outlet_events": events})
    assert events["candidate"].extra["artifact"] == events["other"].extra["artifact"] == uri
    [key] = announcements.pending()
    assert announcements.read(key) == AnnouncedCandidate(artifact=uri, source_run="manual__1")
