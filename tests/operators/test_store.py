"""The store from Airflow's side: on S3 by the platform's connection, whose secret stays with it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowException

from include.artifacts.store import Store
from include.errors import ConfigurationError, TryAgainError
from include.job_plan import JobPlan
from include.platforms import Platform, load_platform
from operators import store as module
from operators.gates.sensor import GateSensor
from operators.local.operator import LocalJobOperator
from operators.store import platform_store, store_of
from tests.s3 import server

CONFIG = {"variant": "heldout", "rows": 20}


@pytest.fixture
def platform(s3_bucket: str, s3_server: str, monkeypatch: pytest.MonkeyPatch) -> Platform:
    """Return one whose store only the connection can reach: this process itself has no credentials for it."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL_S3", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name)
    connection = {
        "conn_type": "aws",
        "login": server.KEY,
        "password": server.SECRET,
        "extra": {"endpoint_url": s3_server, "region_name": server.REGION, "config_kwargs": {"user_agent_extra": "x"}},
    }
    monkeypatch.setenv("AIRFLOW_CONN_ANEMONE_STORE", json.dumps(connection))
    update = {"store": f"s3://{s3_bucket}/store", "store_connection": "anemone_store"}
    platform = load_platform("laptop").model_copy(update=update)
    monkeypatch.setattr(module, "current_platform", lambda: platform)
    return platform


def test_the_connection_reaches_the_store(platform: Platform) -> None:
    store = platform_store(platform)
    assert store.create("claims/one", b"first")
    assert store_of(f"{platform.store}/data-1")[0].read_file("claims/one") == b"first"
    with pytest.raises(ConfigurationError, match="no credentials"):
        Store(platform.store).read_file("claims/one")


def test_a_job_is_planned_with_the_connection_and_its_spec_has_no_secret(platform: Platform) -> None:
    plan = JobPlan.prepare("generate", config=CONFIG, inputs={}, store=platform_store(platform))
    assert plan.committed() is None
    uri = plan.write_spec()
    document = platform_store(platform).read_file(uri.removeprefix(f"{platform.store}/"))
    assert json.loads(document)["output"]["store"] == platform.store
    for secret in (server.SECRET, server.KEY, "anemone_store"):
        assert secret.encode() not in document.replace(platform.store.encode(), b"")
        assert secret not in repr(plan)


def test_jobs_read_and_write_s3_with_their_own_credentials(platform: Platform, s3_server: str, tmp_path: Path) -> None:
    """The next job reads the data set where the first one stored it; nothing is on this machine's disk."""
    own = {
        "AWS_ACCESS_KEY_ID": server.KEY,
        "AWS_SECRET_ACCESS_KEY": server.SECRET,
        "AWS_ENDPOINT_URL_S3": s3_server,
        "AWS_DEFAULT_REGION": server.REGION,
        "ANEMONE_SCRATCH": str(tmp_path / "scratch"),
    }
    here = platform.model_copy(update={"python": {"jobs": sys.executable}, "environment": own})

    def run(task: str, section: dict[str, Any]) -> str:
        operator = LocalJobOperator(task_id=task, section=section)
        operator.__dict__["platform"] = here
        return operator.execute({"run_id": "manual__1", "params": {"refresh": []}})

    made = run("generate", {"job": "generate", "config": CONFIG})
    store, name = store_of(made)
    manifest = store.manifest(name)
    source = f"{made}/attempts/{manifest.attempt}/files/data.jsonl"
    taken = run("ingest", {"job": "ingest", "config": {"source": source, "settle_seconds": 0}})
    assert store.manifest(store_of(taken)[1]).content_digest == manifest.content_digest
    with store.open_files(name) as folder:
        assert len((folder / "data.jsonl").read_bytes().splitlines()) == CONFIG["rows"]
    assert list((tmp_path / "scratch").iterdir()) == []


def test_a_gate_reads_through_the_connection(platform: Platform, provenance: Any) -> None:
    store = platform_store(platform)
    result = {
        "success": True,
        "rows": 9,
        "figures": {},
        "expectations": [{"name": "a", "success": True, "observed": 0, "limit": "at most 1", "message": "a"}],
    }
    with store.attempt("check-1") as attempt:
        (attempt.files / "result.json").write_text(json.dumps(result))
        attempt.commit(job="check", code="0", provenance=provenance)
    GateSensor(task_id="gate", gate="data_quality", artifact=store.uri("check-1")).execute({})


def test_a_connection_that_is_missing_is_one_sentence(platform: Platform) -> None:
    store = platform_store(platform.model_copy(update={"store_connection": "not_there"}))
    with pytest.raises(TryAgainError, match="connection 'not_there', which the platform names .* create it"):
        store.manifest("data-1")


def test_a_store_that_denies_fails_the_task_in_one_sentence(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection = {"conn_type": "aws", "login": server.KEY, "password": "wrong", "extra": {"region_name": server.REGION}}
    monkeypatch.setenv("AIRFLOW_CONN_ANEMONE_STORE", json.dumps(connection))
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:1")
    gate = GateSensor(task_id="gate", gate="data_quality", artifact=f"{platform.store}/check-1")
    with pytest.raises(AirflowException, match="check its endpoint; tasks try again meanwhile") as caught:
        gate.execute({})
    assert "wrong" not in str(caught.value)


def test_a_store_of_files_needs_no_connection(tmp_path: Path) -> None:
    platform = load_platform("laptop").model_copy(update={"store": f"file://{tmp_path}", "store_connection": "x"})
    assert platform_store(platform).names() == []
    assert store_of(f"file://{tmp_path}/data-1")[0].manifest("data-1") is None
