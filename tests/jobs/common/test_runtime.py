"""What every job does around its work: the exit codes, the last sentence, reuse, and what a full disk leaves."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from errno import EMFILE, ENOSPC
from pathlib import Path

import pytest

from include.specs import job_module
from jobs.common import runtime
from jobs.common.runtime import record_provenance

CONFIG = {"variant": "heldout", "rows": 20}


def run(uri: str, job: str = "generate", **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", job_module(job), "--spec", uri]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **env}, timeout=120)


def last_line(done: subprocess.CompletedProcess[str]) -> str:
    return done.stderr.strip().splitlines()[-1]


def test_the_same_spec_gives_the_same_bytes_and_is_not_run_again(run_job, store):
    first = run_job("generate", CONFIG)
    again = run_job("generate", CONFIG)
    assert again.manifest == first.manifest
    assert "reused artifact=" in again.stdout


def test_the_manifest_says_from_what_by_what_and_at_what_cost(run_job, make_artifact):
    data = make_artifact("data-1", {"data.jsonl": '{"prompt": "say hi to bob", "completion": "hi bob"}\n' * 3})
    outcome = run_job("curate", {"heldout_fraction": 0.0}, {"data": data})
    manifest = outcome.manifest
    assert manifest.inputs["data"].digest == data.digest
    assert manifest.config["heldout_fraction"] == 0.0
    assert manifest.provenance.packages["nemo-curator"] == "1.4.0"
    assert manifest.provenance.cpu_seconds > 0 and manifest.provenance.peak_rss_bytes > 10**7
    events = outcome.folder.parent / "events.jsonl"
    assert json.loads(events.read_text().splitlines()[0])["event"] == "started"


def test_a_job_costs_its_time_on_all_of_its_nodes_at_the_price_of_one(monkeypatch):
    hour = datetime.now(UTC) - timedelta(hours=1)
    assert record_provenance(hour).cost is None
    monkeypatch.setenv("ANEMONE_PRICE_PER_HOUR", "2.5")
    assert record_provenance(hour).cost == pytest.approx(2.5, rel=1e-3)
    monkeypatch.setenv("PET_NNODES", "4")
    assert record_provenance(hour).cost == pytest.approx(10, rel=1e-3)


def test_an_error_that_is_its_own_cause_is_looked_at_once():
    error, other = OSError(EMFILE, os.strerror(EMFILE)), ValueError("behind it")
    error.__cause__, other.__cause__ = other, error
    assert not runtime.is_full_disk(error)
    other.__cause__ = OSError(ENOSPC, "full")
    assert runtime.is_full_disk(error)


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (lambda spec: spec | {"speed": 1}, "speed: Extra inputs are not permitted"),
        (lambda spec: spec["config"].update(rows="many") or spec, "config.rows: Input should be a valid integer"),
        (lambda spec: spec["output"].update(name="../x") or spec, "output.name"),
        (lambda spec: spec | {"job": "curate"}, "job: Input should be 'generate'"),
    ],
    ids=["unknown-key", "wrong-type", "unsafe-name", "other-job"],
)
def test_a_wrong_spec_is_64_before_anything_starts(write_spec, store, tmp_path, edit, says):
    uri, _ = write_spec("generate", CONFIG)
    document = json.loads(Path(uri.removeprefix("file://")).read_text())
    wrong = tmp_path / "wrong.json"
    wrong.write_text(json.dumps(edit(document)))
    done = run(f"file://{wrong}")
    assert done.returncode == 64
    assert says in last_line(done)
    assert store.names() == []


def test_the_usage_names_the_module_that_was_called():
    done = subprocess.run([sys.executable, "-m", job_module("generate")], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr.splitlines()[0]) == (2, "usage: python -m jobs.demo.generate [-h] --spec URI")


def test_a_missing_spec_is_75(tmp_path):
    done = run(f"file://{tmp_path}/nothing.json")
    assert (done.returncode, last_line(done)) == (
        75,
        f"error: the spec file://{tmp_path}/nothing.json does not exist, or its store cannot be reached: the "
        "next try writes it again",
    )


def test_a_store_that_goes_away_meanwhile_is_75_and_nothing_is_written_in_its_place(write_spec, tmp_path):
    uri, _ = write_spec("generate", {**CONFIG, "rows": 20_000})
    command = [sys.executable, "-m", "jobs.demo.generate", "--spec", uri]
    job = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert job.stdout.readline().startswith("started ")
    (tmp_path / "store").rename(tmp_path / "away")
    _, told = job.communicate(timeout=60)
    assert (job.returncode, told.splitlines()[-1]) == (
        75,
        f"error: the store file://{tmp_path}/store is not there: mount it, or put its folder back; tasks try again "
        "meanwhile",
    )
    assert not (tmp_path / "store").exists()


def test_code_that_changed_since_the_plan_is_75(write_spec, tmp_path):
    uri, _ = write_spec("generate", CONFIG)
    document = json.loads(Path(uri.removeprefix("file://")).read_text())
    document["output"]["code"] = "0" * 64
    (tmp_path / "spec.json").write_text(json.dumps(document))
    done = run(f"file://{tmp_path}/spec.json")
    assert done.returncode == 75
    assert "the code of job generate changed between planning and start" in last_line(done)


def test_an_input_that_was_tampered_with_is_65_and_leaves_nothing(write_spec, make_artifact, store):
    data = make_artifact("data-1", {"data.jsonl": '{"prompt": "a", "completion": "b"}\n'})
    uri, name = write_spec("curate", {}, {"data": data})
    (path,) = Path(store.root.removeprefix("file://"), "data-1", "attempts").glob("*/files/data.jsonl")
    path.write_text('{"prompt": "a", "completion": "c"}\n')
    done = run(uri, "curate")
    assert done.returncode == 65
    assert "data.jsonl was altered after its commit" in last_line(done)
    assert store.manifest(name) is None


def test_the_last_sentence_also_goes_where_a_pod_reports_it(tmp_path):
    log = tmp_path / "termination-log"
    done = run(f"file://{tmp_path}/nothing.json", ANEMONE_TERMINATION_LOG=str(log))
    assert f"error: {log.read_text()}" == last_line(done)


@pytest.fixture
def full_disk(tmp_path):
    """A file system of 256 KiB."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    path = tmp_path / "small"
    path.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", path], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"a tmpfs cannot be mounted here: {mounted.stderr.strip()}")
    yield path
    subprocess.run(["umount", path], check=True)


@pytest.mark.remedy("free some, then clear this task")
def test_no_disk_space_is_75_with_one_sentence_and_nothing_half_done(write_spec, full_disk, tmp_path):
    uri, name = write_spec("generate", {**CONFIG, "rows": 20_000})
    document = json.loads(Path(uri.removeprefix("file://")).read_text())
    (full_disk / "store").mkdir()
    document["output"]["store"] = f"file://{full_disk}/store"
    (tmp_path / "spec.json").write_text(json.dumps(document))
    done = run(f"file://{tmp_path}/spec.json")
    assert done.returncode == 75
    assert last_line(done).startswith("error: no space left")
    assert "free some, then clear this task" in last_line(done)
    assert not (full_disk / "store" / name / "manifest.json").exists()
    assert not list((full_disk / "store").glob(f"{name}/attempts/*/files"))
    subprocess.run(["mount", "-o", "remount,size=64m", full_disk], check=True)
    assert run(f"file://{tmp_path}/spec.json").returncode == 0


@pytest.mark.parametrize(("stated", "dirty"), [("0123abcd", False), ("0123abcd-dirty", True)])
def test_an_image_says_from_which_commit_it_is(tmp_path, monkeypatch, stated, dirty):
    (tmp_path / "REVISION").write_text(f"{stated}\n")
    monkeypatch.setattr(runtime, "PROJECT", tmp_path)
    provenance = runtime.record_provenance(datetime.now(UTC))
    assert (provenance.git_sha, provenance.git_dirty) == ("0123abcd", dirty)
