"""The operator with real processes: the job `generate` needs nothing that Airflow's environment lacks."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from airflow.sdk.exceptions import AirflowException, AirflowFailException

from include.artifacts.store import Store
from include.platforms import load_platform
from operators.local.operator import LocalJobOperator

CONTEXT = {"run_id": "manual__1", "params": {"refresh": []}}


@pytest.fixture
def stage(store):
    platform = load_platform("laptop").model_copy(
        update={"store": store.root, "python": {"jobs": sys.executable}, "grace_seconds": 2}
    )

    def make(**kwargs) -> LocalJobOperator:
        operator = LocalJobOperator(**{"task_id": "heldout", **kwargs})
        operator.__dict__["platform"] = platform
        return operator

    return make


def section(**config):
    return {"job": "generate", "config": {"variant": "heldout", "rows": 5, **config}}


def test_runs_a_job_and_returns_its_artifact(stage, store):
    uri = stage(section=section()).execute(CONTEXT)
    _, name = Store.of(uri)
    assert len(store.read_bytes(name, "data.jsonl").splitlines()) == 5


def test_what_was_made_before_is_reused_and_the_log_says_how_to_refresh(stage, store, capsys):
    first = stage(section=section()).execute(CONTEXT)
    assert stage(section=section()).execute(CONTEXT) == first
    assert "refresh=['heldout']" in capsys.readouterr().out
    refreshed = stage(section=section()).execute({**CONTEXT, "params": {"refresh": ["heldout"]}})
    assert refreshed != first
    assert store.manifest(Store.of(refreshed)[1]).content_digest == store.manifest(Store.of(first)[1]).content_digest


def test_a_stage_that_the_recipe_does_not_have_does_nothing(stage, store):
    assert stage(section=None).execute(CONTEXT) is None
    assert store.names() == []


def test_a_wrong_configuration_is_not_retried(stage):
    with pytest.raises(AirflowFailException, match=r"job generate: config\.rows"):
        stage(section=section(rows=-1)).execute(CONTEXT)


@pytest.mark.remedy("set ….nodes: 1, or ANEMONE_PLATFORM to a cluster")
def test_a_training_of_several_nodes_is_refused_before_it_starts(stage, store, commit):
    for name in ("base", "data"):
        commit(name, {"a": "1"})
    config = {"steps": 10, "learning_rate": 0.1, "max_tokens": 64, "chat_template": "x", "local_batch_size": 4}
    config |= {"processes": 2, "nodes": 2}
    inputs = {name: store.uri(name) for name in ("base", "data")}
    with pytest.raises(AirflowFailException, match=r"finetune\.nodes is 2, .* one machine: set finetune\.nodes: 1, or"):
        stage(section={"job": "finetune", "config": config}, inputs=inputs).execute(CONTEXT)
    assert store.names("finetune") == []
    # Airflow's environment lacks what the job imports: it is started, and no more.
    with pytest.raises(AirflowException) as started:
        stage(section={"job": "finetune", "config": {**config, "nodes": 1}}, inputs=inputs).execute(CONTEXT)
    assert "one machine" not in str(started.value)


def test_a_failure_carries_the_jobs_own_last_sentence(stage, tmp_path):
    ingest = {"job": "ingest", "config": {"source": str(tmp_path / "nothing.jsonl")}}
    with pytest.raises(AirflowException, match="nothing.jsonl"):
        stage(section=ingest).execute(CONTEXT)


def test_a_store_that_cannot_be_written_is_worth_another_try(stage, tmp_path):
    (tmp_path / "file").write_text("where the store's folder should be")
    operator = stage(section=section())
    operator.__dict__["platform"] = operator.platform.model_copy(update={"store": f"file://{tmp_path}/file/store"})
    with pytest.raises(AirflowException, match="the store file://.* is not there") as failure:
        operator.execute(CONTEXT)
    assert not isinstance(failure.value, AirflowFailException)


def test_on_kill_ends_the_job(stage, tmp_path):
    slow = tmp_path / "python"
    slow.write_text(f"#!/bin/sh\necho $$ > {tmp_path}/pid\nexec sleep 600\n")
    slow.chmod(0o755)
    operator = stage(section=section())
    operator.__dict__["platform"] = operator.platform.model_copy(update={"python": {"jobs": str(slow)}})
    threading.Timer(1, operator.on_kill).start()
    started = time.monotonic()
    with pytest.raises(AirflowException):
        operator.execute(CONTEXT)
    assert time.monotonic() - started < 60
    assert not Path(f"/proc/{(tmp_path / 'pid').read_text().strip()}").exists()


def test_a_job_sees_nothing_of_airflows_secrets(stage, tmp_path, monkeypatch):
    monkeypatch.setenv("AIRFLOW_CONN_WAREHOUSE", "postgres://user:planted-secret@host/db")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "planted-secret")
    monkeypatch.setenv("SOMETHING_ELSE", "planted-secret")
    show = tmp_path / "python"
    show.write_text(f"#!/bin/sh\nenv > {tmp_path}/env\nexit 70\n")
    show.chmod(0o755)
    operator = stage(section=section())
    operator.__dict__["platform"] = operator.platform.model_copy(update={"python": {"jobs": str(show)}})
    with pytest.raises(AirflowFailException):
        operator.execute(CONTEXT)
    environment = (tmp_path / "env").read_text()
    assert "HF_HUB_OFFLINE=1" in environment and "PATH=" in environment
    assert "planted-secret" not in environment


@pytest.mark.remedy("its process was killed, or its machine was lost: read the log, then clear the task")
def test_the_tree_ends_when_the_task_is_sigkilled_and_the_cleared_task_runs_it_again(stage, store, tmp_path):
    slow = tmp_path / "python"
    slow.write_text(f"#!/bin/sh\necho $$ > {tmp_path}/pid\nexec sleep 600\n")
    slow.chmod(0o755)
    program = f"""
from operators.local.operator import LocalJobOperator
from include.platforms import load_platform
operator = LocalJobOperator(task_id="t", section={section()!r})
operator.__dict__["platform"] = load_platform("laptop").model_copy(
    update={{"store": {store.root!r}, "python": {{"jobs": {str(slow)!r}}}, "grace_seconds": 1}})
operator.execute({CONTEXT!r})
"""
    task = subprocess.Popen([sys.executable, "-c", program], start_new_session=True)
    pid_file = tmp_path / "pid"
    deadline = time.monotonic() + 120
    while not pid_file.exists() or not pid_file.read_text().strip():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(task.pid, signal.SIGKILL)
    task.wait()
    job = Path(f"/proc/{pid_file.read_text().strip()}")
    deadline = time.monotonic() + 30
    while job.exists():
        assert time.monotonic() < deadline, "the job outlived its task"
        time.sleep(0.05)
    assert stage(section=section()).execute(CONTEXT)
