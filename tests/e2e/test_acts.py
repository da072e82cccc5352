"""The demo as a newcomer runs it, killed in its middle and started again; then releases under load, and with the parts
that Airflow has in them killed.

One Airflow, in the order of the file: each test goes on where the one before it stopped.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from playwright.sync_api import expect, sync_playwright

from include.artifacts.store import Store
from include.home import PROJECT
from include.laptop import airflow as laptop
from include.laptop import up
from include.laptop.components import components
from include.laptop.datasets import MODEL
from include.laptop.home import python_of
from include.laptop.rest import Airflow
from include.laptop.serving import router_url
from include.platforms import load_platform
from include.release.controller_client import ControllerClient
from tests.processes import command_lines, parent, stat
from tests.waiting import wait_for

DAG = "customize"
RECIPE = "demo/0.8M_lora_cpu"
EFFECTS = ("champion", "register", "candidate", "promote", "canary")


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


def states(client: Airflow, run: str, dag: str = DAG) -> dict[str, str]:
    return {task["task_id"]: task["state"] for task in client.task_instances(dag, run)}


def ended(client: Airflow, dag: str, run: str, seconds: float = 300) -> str:
    """The state that a run ends in."""
    return wait_for(
        lambda: state if (state := client.run(dag, run)["state"]) in ("success", "failed") else None,
        seconds,
        f"the end of {dag} {run}",
    )


def controller() -> ControllerClient:
    serving = load_platform("laptop").serving
    return ControllerClient(serving.controller_url, serving.token_file)


def live_version() -> str:
    status = controller().target(MODEL)
    assert status is not None and status.champion is not None
    return status.champion.release.version


def last_run(client: Airflow, data: Path) -> dict:
    return client.runs_on(DAG, str(data), since=0)[0]


def log_text(client: Airflow, run: str, task: str, dag: str = DAG) -> str:
    tries = {found["task_id"]: found["try_number"] for found in client.task_instances(dag, run)}
    return "\n".join(
        " ".join([str(record.get("event")), *(str(part.get("exc_value")) for part in record.get("error_detail") or ())])
        for record in client.log(dag, run, task, tries[task])
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
        for pid in command_lines(home):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.communicate()
    wait_for(lambda: not command_lines(home), 30, "every process of the demo to be gone")
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
        expect(page.get_by_text("Run again").first).to_be_visible()

        page.goto(f"{client.url}/dags/customize/runs/{good}/tasks/evaluate/details")
        link = page.locator("a", has_text="Artifact")
        expect(link).to_be_visible()
        page.goto(f"{client.url}{link.get_attribute('href')}")
        expect(page.get_by_text("tuned_exact_match")).to_be_visible()
        page.get_by_role("link", name="results.json").click()
        expect(page.get_by_text("base_few_shot").first).to_be_visible()

        page.goto(f"{client.url}/dags/customize/runs/{good}/tasks/report/details")
        link = page.locator("a", has_text="Report")
        expect(link.last).to_be_visible()
        page.goto(f"{client.url}{link.last.get_attribute('href')}")
        expect(page.get_by_role("heading", level=1)).to_contain_text("Passed every gate")
        browser.close()


def test_every_release_ended_as_it_should(home: Path, store: Store) -> None:
    """The demo has gone to the first release, to the better one, past a bad one, back, and forward again."""
    client = laptop.client()
    assert live_version() == "2"
    assert champion_in_mlflow(home) == "2"
    status = controller().target(MODEL)
    assert [live.release.version for live in status.previous] == ["1"]
    outcomes = [
        store.read_json(name, "status.json")["outcome"]
        for name in sorted(store.names("canary-"), key=lambda name: store.manifest(name).provenance.finished)
    ]
    assert outcomes == ["promoted", "promoted", "rolled_back", "promoted", "promoted"]
    evidence = next(name for name in store.names("canary-") if store.read_json(name, "status.json")["figures"])
    replay = subprocess.run(
        [python_of("serving"), "-m", "jobs.serving.canary", "replay", store.uri(evidence)],
        capture_output=True,
        text=True,
    )
    assert replay.returncode == 0, replay.stdout + replay.stderr
    # Nothing of a release's own name, or of Triton, is to be seen from outside.
    models = subprocess.run(["curl", "-s", f"{router_url()}/v1/models"], capture_output=True, text=True).stdout
    assert MODEL in models and f"{MODEL}-v" not in models
    assert client.running("release") == []


OVERRIDES = {"evaluate.max_new_tokens": 40, "canary.steps": [0.2, 0.4], "canary.max_seconds": 61}
"""None of them changes what is trained."""


def test_an_unchanged_data_set_is_reused_stage_by_stage(home: Path, store: Store) -> None:
    client = laptop.client()
    # The check is asked about the length of answers, too.
    anew = ("check-", "evaluate-", "engine-", "report-")
    before = {name for name in jobs_made(store) if not name.startswith(anew)}
    first = last_run(client, home / "inbox" / "good.jsonl")["dag_run_id"]
    conf = {"data": str(home / "inbox" / "good.jsonl"), "recipe": RECIPE, "overrides": OVERRIDES}
    run = client.trigger(DAG, conf)["dag_run_id"]
    assert ended(client, DAG, run) == "success"
    assert {name for name in jobs_made(store) if not name.startswith(anew)} == before
    for task in ("ingest", "base", "heldout", "curate", "finetune", "merge"):
        assert f"refresh=['{task}']" in log_text(client, run, task)
        assert client.xcom(DAG, run, task) == client.xcom(DAG, first, task)
    # Evaluated anew, because there is a champion now; so it is a candidate of its own, whose release has begun.
    register = Store.of(client.xcom(DAG, run, "register"))
    assert register[0].read_json(register[1], "candidate.json")["champion_version"] == "2"


def test_a_release_marked_as_failed_goes_back(home: Path, store: Store) -> None:
    """No traffic comes, so it would wait for evidence until its time is over."""
    client = laptop.client()
    [run] = wait_for(lambda: client.running("release"), 120, "the release of the candidate of the test before")
    wait_for(lambda: client.xcom("release", run, "engine"), 120, "its engine")
    # The candidate was made with overrides, and is released with them.
    engine, made = Store.of(client.xcom("release", run, "engine"))
    assert engine.manifest(made).config["max_new_tokens"] == OVERRIDES["evaluate.max_new_tokens"]
    recipe = log_text(client, run, "recipe", "release")
    assert f"is released by the recipe {RECIPE} as its run had it, with {json.dumps(OVERRIDES)}" in recipe
    # Airflow tells a trigger of such a mark only while it runs, which is a moment after the task is deferred.
    wait_for(lambda: "rollout state=step" in log_text(client, run, "canary", "release"), 120, "the trigger")
    rollout = controller().target(MODEL).rollout
    client.fail("release", run)
    wait_for(lambda: controller().status(rollout).ended, 60, "the rollout to go back")
    status = controller().status(rollout)
    assert status.outcome == "rolled_back"
    policy = store.read_json(Store.of(status.evidence)[1], "request.json")["policy"]
    assert (policy["steps"], policy["max_seconds"]) == (OVERRIDES["canary.steps"], OVERRIDES["canary.max_seconds"])
    assert live_version() == "2"


def test_promotion_rollback_and_a_bad_release_lose_no_request(home: Path) -> None:
    """Nor where a release's task is killed, or the triggerer that waits for one: the controller leads it to its end."""
    client = laptop.client()
    up.start_traffic(60)
    wait_for(lambda: traffic().get("answered"), 30, "the first answers")
    try:
        for dag, conf, harm, end, live in (
            ("rollback", {"model": MODEL, "version": "1"}, None, "success", "1"),
            ("release", {"version": "2", "recipe": RECIPE}, kill_the_task, "success", "2"),
            ("release", {"version": "2", "recipe": RECIPE, "drill": "failing"}, kill_the_triggerer, "failed", "2"),
            ("release", {"version": "2", "recipe": RECIPE, "drill": "garbled"}, None, "failed", "2"),
            ("rollback", {"model": MODEL, "version": "1"}, None, "success", "1"),
        ):
            run = client.trigger(dag, conf)["dag_run_id"]
            task = "canary" if dag == "release" else "rollback"
            if harm is not None:
                rollout = wait_for(lambda: controller().target(MODEL).rollout, 120, "the rollout")
                harm(client, run, rollout)
            assert ended(client, dag, run) == end, log_text(client, run, task, dag)
            assert live_version() == champion_in_mlflow(home) == live
            if harm is kill_the_task:
                tries = {task["task_id"]: task["try_number"] for task in client.task_instances(dag, run)}
                assert tries["canary"] == 2
                assert controller().status(rollout).outcome == "promoted"
            if harm is kill_the_triggerer:
                assert "rolled back (drill: failing)" in log_text(client, run, task, dag)
        wait_for(lambda: traffic()["sent"] >= 5000, 120, "5,000 requests")
    finally:
        up.stop_traffic()
    counts = traffic()
    assert (counts["failed"], counts["shed"], counts["in_flight"], counts["unavailable"]) == (0, 0, 0, 0), counts
    assert counts["answered"] == counts["sent"] >= 5000


def kill_the_task(_client: Airflow, _run: str, _rollout: str) -> None:
    killed = task_processes()
    assert killed
    for pid in killed:
        os.kill(pid, signal.SIGKILL)


def kill_the_triggerer(client: Airflow, run: str, rollout: str) -> None:
    wait_for(lambda: states(client, run, "release").get("canary") == "deferred", 120, "the canary")
    triggerer = next(component for component in components() if component.name == "triggerer")
    os.kill(triggerer._identity().pid, signal.SIGKILL)
    wait_for(lambda: controller().status(rollout).ended, 120, "the rollout to end without Airflow")
    laptop.up()


def test_all_that_is_new_starts_its_run_and_the_same_data_under_another_name_starts_nothing(home: Path) -> None:
    client = laptop.client()
    # Their runs wait: what is shown is that there is one of each.
    client.set_paused(DAG, True)
    rows = (home / "inbox" / "good.jsonl").read_bytes().splitlines(keepends=True)
    copy = home / "inbox" / "another-name.jsonl"
    shutil.copy(home / "inbox" / "good.jsonl", copy)
    new = [home / "inbox" / f"new-{number}.jsonl" for number in range(5)]
    for number, path in enumerate(new):
        path.write_bytes(b"".join(rows[: 50 + number]))
    wait_for(lambda: all(client.runs_on(DAG, str(path), since=0) for path in new), 60, "a run of each that is new")
    wait_for(lambda: not client.running("arrivals"), 60, "the passes to end")
    assert [len(client.runs_on(DAG, str(path), since=0)) for path in (copy, *new)] == [0, 1, 1, 1, 1, 1]


def champion_in_mlflow(home: Path) -> str:
    look = "from mlflow import MlflowClient; "
    look += f"print(MlflowClient().get_model_version_by_alias('{MODEL}', 'champion').version)"
    tracking = {"MLFLOW_TRACKING_URI": f"sqlite:///{home}/mlflow.db", "MLFLOW_DISABLE_TELEMETRY": "true"}
    command = [python_of("jobs"), "-c", look]
    found = subprocess.run(command, env={**os.environ, **tracking}, check=True, capture_output=True, text=True)
    return found.stdout.strip()


def traffic() -> dict[str, int]:
    try:
        return json.loads(up.traffic_counts().read_text())
    except FileNotFoundError:
        return {}


def task_processes() -> list[int]:
    """The processes that run tasks now: the children of the executor's workers."""
    scheduler = next(component for component in components() if component.name == "scheduler")._identity().pid
    parents = {pid: parent(pid) for pid in _session(scheduler)}
    return [pid for pid, worker in parents.items() if parents.get(worker) == scheduler]


def _session(leader: int) -> list[int]:
    pids = [int(folder.name) for folder in Path("/proc").glob("[0-9]*")]
    return [pid for pid in pids if (fields := stat(pid)) and int(fields[3]) == leader]
