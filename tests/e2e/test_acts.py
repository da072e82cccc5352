"""The demo as a newcomer runs it, killed in its middle, started again, repeated, and with a task killed.

One Airflow, in the order of the file: each test goes on where the one before it stopped.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest
from playwright.sync_api import expect, sync_playwright

from include.artifacts.store import Store
from include.code_identity import PROJECT
from include.laptop import airflow as laptop
from include.laptop.home import python_of
from include.laptop.rest import Airflow

T = TypeVar("T")

DAG = "customize"
EFFECTS = ("champion", "register")


def processes_of(home: Path) -> list[int]:
    """Everything that was started with this home."""
    mark = f"ANEMONE_HOME={home}".encode()
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if mark in (folder / "environ").read_bytes().split(b"\0"):
                found.append(int(folder.name))
    return found


def wait_for(condition: Callable[[], T], seconds: float, what: str) -> T:
    """The first true value of a condition."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"waited {seconds:.0f} s for {what}"
        time.sleep(0.2)
    return value


def demo() -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "include.laptop.demo"],
        cwd=PROJECT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def run_demo() -> str:
    process = demo()
    output, _ = process.communicate(timeout=900)
    assert process.returncode == 0, output
    return output


def states(client: Airflow, run: str) -> dict[str, str]:
    return {task["task_id"]: task["state"] for task in client.task_instances(DAG, run)}


def last_run(client: Airflow, data: Path) -> dict:
    return client.runs_on(DAG, str(data), since=0)[0]


def log_text(client: Airflow, run: str, task: str) -> str:
    tries = {found["task_id"]: found["try_number"] for found in client.task_instances(DAG, run)}
    return "\n".join(
        " ".join([str(record.get("event")), *(str(part.get("exc_value")) for part in record.get("error_detail") or ())])
        for record in client.log(DAG, run, task, tries[task])
    )


@pytest.fixture(scope="module")
def store(home: Path) -> Store:
    return Store(f"file://{home}/store")


def jobs_made(store: Store) -> set[str]:
    return {name for name in store.names() if not name.startswith(EFFECTS)}


def test_killed_in_the_middle_of_training(home: Path, store: Store) -> None:
    process = demo()
    try:
        wait_for(lambda: [name for name in store.names("finetune-") if ".step" in name], 600, "a first checkpoint")
    finally:
        # All at once, as a power cut would.
        for pid in processes_of(home):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.communicate()
    wait_for(lambda: not processes_of(home), 30, "every process of the demo to be gone")
    assert not [name for name in store.names("finetune-") if ".step" not in name]


def test_started_again_every_act_ends_as_it_should(home: Path, store: Store) -> None:
    output = run_demo()
    client = laptop.client()
    good, rotten, poisoned = (
        last_run(client, home / "inbox" / f"{act}.jsonl") for act in ("good", "rotten", "poisoned")
    )

    assert good["state"] == "success"
    assert set(states(client, good["dag_run_id"]).values()) == {"success"}
    finetune = store.manifest(Store.of(client.xcom(DAG, good["dag_run_id"], "finetune"))[1])
    assert finetune.metrics["resumed_from"], "the killed training started from nothing"
    candidate = Store.of(client.xcom(DAG, good["dag_run_id"], "register"))
    assert candidate[0].read_json(candidate[1], "candidate.json")["version"] == "1"

    assert rotten["state"] == "failed"
    stages = states(client, rotten["dag_run_id"])
    assert (stages["data_quality_gate"], stages["finetune"], stages["register"]) == (
        "failed",
        "upstream_failed",
        "upstream_failed",
    )
    reasons = log_text(client, rotten["dag_run_id"], "data_quality_gate")
    assert reasons.count("limit") >= 3

    assert poisoned["state"] == "failed"
    stages = states(client, poisoned["dag_run_id"])
    assert (stages["data_quality_gate"], stages["evaluation_gate"], stages["register"]) == (
        "success",
        "failed",
        "upstream_failed",
    )
    assert "exact match" in log_text(client, poisoned["dag_run_id"], "evaluation_gate")
    for word in ("good", "rotten", "poisoned", "data_quality_gate", "evaluation_gate"):
        assert word in output


def test_the_form_and_the_artifact_pages_in_a_browser(home: Path) -> None:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium here: install one (on Debian: apt install chromium)")
    client = laptop.client()
    good = last_run(client, home / "inbox" / "good.jsonl")["dag_run_id"]
    quiet = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
    with sync_playwright() as browsers:
        browser = browsers.chromium.launch(executable_path=chromium, args=[*quiet, "--disable-sync", "--no-first-run"])
        page = browser.new_page()
        page.set_default_timeout(30_000)
        expect.set_options(timeout=30_000)
        page.goto(f"{client.url}/dags/customize")
        page.fill("input[name=username]", laptop.USER)
        page.fill("input[name=password]", laptop.password())
        page.click("button[type=submit]")
        page.wait_for_url(lambda url: "/auth/" not in url)
        page.wait_for_load_state("networkidle")

        page.goto(f"{client.url}/dags/customize")
        page.get_by_role("button", name="Trigger").first.click()
        page.get_by_role("button", name="Data and recipe").click()
        expect(page.get_by_text("Data set").first).to_be_visible()
        expect(page.get_by_text("demo/0.8M_lora_cpu").first).to_be_visible()
        page.get_by_role("button", name="Changes to the recipe").click()
        expect(page.get_by_text("Make anew").first).to_be_visible()

        page.goto(f"{client.url}/dags/customize/runs/{good}/tasks/evaluate/details")
        link = page.locator("a", has_text="Artifact")
        expect(link).to_be_visible()
        page.goto(f"{client.url}{link.get_attribute('href')}")
        expect(page.get_by_text("tuned_exact_match")).to_be_visible()
        page.get_by_role("link", name="results.json").click()
        expect(page.get_by_text("base_few_shot").first).to_be_visible()
        browser.close()


def test_repeated_it_reuses_every_unchanged_stage(home: Path, store: Store) -> None:
    before = jobs_made(store)
    run_demo()
    assert jobs_made(store) == before
    client = laptop.client()
    good = last_run(client, home / "inbox" / "good.jsonl")
    for task in ("ingest", "base", "heldout", "curate", "check", "finetune", "merge", "evaluate"):
        assert f"refresh=['{task}']" in log_text(client, good["dag_run_id"], task)
    register = Store.of(client.xcom(DAG, good["dag_run_id"], "register"))
    assert register[0].read_json(register[1], "candidate.json")["version"] == "1"


def test_the_same_data_under_another_name_starts_nothing(home: Path) -> None:
    client = laptop.client()
    copy = home / "inbox" / "another-name.jsonl"
    shutil.copy(home / "inbox" / "good.jsonl", copy)
    new = home / "inbox" / "new.jsonl"
    new.write_bytes(b"".join((home / "inbox" / "good.jsonl").read_bytes().splitlines(keepends=True)[:50]))
    wait_for(lambda: client.runs_on(DAG, str(new), since=0), 60, "the run on what is really new")
    assert client.runs_on(DAG, str(copy), since=0) == []


def test_a_killed_task_takes_its_processes_with_it_and_its_retry_gives_the_same_model(home: Path, store: Store) -> None:
    client = laptop.client()
    good = home / "inbox" / "good.jsonl"
    first = last_run(client, good)["dag_run_id"]
    conf = {"data": str(good), "recipe": "demo/0.8M_lora_2cpu", "refresh": ["finetune"]}
    run = client.trigger(DAG, conf)["dag_run_id"]
    ranks = wait_for(lambda: [pid for pid in processes_of(home) if _is_training(pid)], 300, "the training's processes")
    before = set(store.names("finetune-"))
    wait_for(lambda: set(store.names("finetune-")) - before, 300, "a checkpoint")
    task = wait_for(lambda: _task_process(ranks[0]), 10, "the task's process")
    os.kill(task, signal.SIGKILL)
    wait_for(lambda: not any(map(_alive, ranks)), 30, "every process of the training to be gone")

    wait_for(lambda: client.run(DAG, run)["state"] in ("success", "failed"), 600, "the retry")
    assert client.run(DAG, run)["state"] == "success", states(client, run)
    models = [store.manifest(Store.of(client.xcom(DAG, each, "evaluate"))[1]).metrics for each in (first, run)]
    assert models[1]["tuned_exact_match"] == pytest.approx(models[0]["tuned_exact_match"], abs=0.05)


def test_a_champion_is_a_bar_of_its_own(home: Path) -> None:
    """Within absolute limits, but worse than the champion by more than the margin."""
    crown = "from mlflow import MlflowClient; MlflowClient().set_registered_model_alias('kubectl', 'champion', '1')"
    tracking = {"MLFLOW_TRACKING_URI": f"sqlite:///{home}/mlflow.db", "MLFLOW_DISABLE_TELEMETRY": "true"}
    subprocess.run([python_of("jobs"), "-c", crown], env={**os.environ, **tracking}, check=True)
    client = laptop.client()
    loose = {"gates.evaluation.min_exact_match": 0.5, "gates.evaluation.max_heldout_loss": 1.0}
    conf = {"data": str(home / "inbox" / "poisoned.jsonl"), "recipe": "demo/0.8M_lora_cpu", "overrides": loose}
    run = client.trigger(DAG, conf)["dag_run_id"]
    wait_for(lambda: client.run(DAG, run)["state"] in ("success", "failed"), 300, "the verdict")
    assert states(client, run)["evaluation_gate"] == "failed"
    assert "worse by more than the margin of .02" in log_text(client, run, "evaluation_gate")


def _is_training(pid: int) -> bool:
    return b"jobs.finetune" in Path(f"/proc/{pid}/cmdline").read_bytes()


def _alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def _task_process(pid: int) -> int:
    """The process that runs the Airflow task above a job's process: the supervisor's parent."""
    while b"operators.supervisor" not in Path(f"/proc/{pid}/cmdline").read_bytes():
        pid = _parent(pid)
    return _parent(pid)


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
