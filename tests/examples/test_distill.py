"""The example that docs/extending.md is built around: copied over the project's packages, it runs."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from include.artifacts.store import Store
from include.home import PROJECT, home

EXAMPLE = PROJECT / "examples" / "distill"
FOLDERS = ("dags", "include", "jobs", "operators", "plugins", "requirements")
TEACHER = {"base.config": {"hidden_size": 32, "layers": 1, "heads": 2, "steps": 30, "warmup_steps": 3}}
"""Is there within seconds, and knows too little to tell rows apart: what the gate is for."""

_IGNORED = shutil.ignore_patterns("__pycache__")
_RUN = """
import json, sys
from airflow.dag_processing.dagbag import DagBag
dag = DagBag(sys.argv[1]).get_dag("distill")
for conf in sys.argv[2:]:
    run = dag.test(run_conf=json.loads(conf))
    states = {instance.task_id: instance.state for instance in run.get_task_instances()}
    print("run " + json.dumps({"state": run.state, "tasks": states}, default=str), flush=True)
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with the example's files, and no other line changed."""
    folder = tmp_path_factory.mktemp("distill") / "project"
    for name in FOLDERS:
        shutil.copytree(PROJECT / name, folder / name, ignore=_IGNORED)
    for file in (path for path in EXAMPLE.rglob("*") if path.is_file() and "__pycache__" not in path.parts):
        target = folder / file.relative_to(EXAMPLE)
        assert not target.exists() or target.read_bytes() == file.read_bytes(), f"{target} is a file of the project"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, target)
    return folder


@pytest.fixture(scope="module")
def environment(project: Path) -> dict[str, str]:
    """An Airflow and a home of their own, with the interpreters of this one."""
    own = project.parent / "home"
    (own / "store").mkdir(parents=True)
    (own / "venvs").symlink_to(home() / "venvs")
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith(("AIRFLOW", "ANEMONE"))},
        "PYTHONPATH": str(project),
        "ANEMONE_HOME": str(own),
        "AIRFLOW_HOME": str(project.parent / "airflow"),
        "AIRFLOW__CORE__DAGS_FOLDER": str(project / "dags"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
    }


@pytest.fixture(scope="module")
def runs(project: Path, environment: dict[str, str]) -> list[dict[str, Any]]:
    """A run that the gate lets pass, and one that it stops."""
    commands = [
        [sys.executable, "-m", "airflow", "db", "migrate"],
        [
            *(sys.executable, "-c", _RUN, str(project / "dags" / "distill.py")),
            *(json.dumps({"overrides": {**TEACHER, **more}}) for more in ({"gates.distillation.max_loss": 0.99}, {})),
        ],
    ]
    for command in commands:
        done = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, timeout=400)
        assert done.returncode == 0, done.stdout + done.stderr
    return [json.loads(line.removeprefix("run ")) for line in done.stdout.splitlines() if line.startswith("run ")]


def test_the_page_about_it_shows_its_own_lines() -> None:
    page = PROJECT / "docs" / "extending.md"
    text = page.read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)#]+)\)", text)
    assert links and all((page.parent / link).exists() for link in links)
    wiring = (EXAMPLE / "dags" / "distill.py").read_text(encoding="utf-8")
    (shown,) = (block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "report_at_the_end" in block)
    for line in shown.splitlines():
        assert line in wiring, line


def reports(environment: dict[str, str]) -> list[dict[str, Any]]:
    store = Store(f"file://{environment['ANEMONE_HOME']}/store")
    folders = sorted(Path(environment["ANEMONE_HOME"], "store").glob("report-*"), key=lambda path: path.stat().st_mtime)
    for folder in folders:
        assert b"<h1" in store.read_bytes(folder.name, "report.html")
    return [store.read_json(folder.name, "report.json") for folder in folders]


def test_a_run_passes_its_own_gate_and_is_reported(runs: list[dict[str, Any]], environment: dict[str, str]) -> None:
    assert runs[0]["state"] == "success", runs[0]
    assert set(runs[0]["tasks"].values()) == {"success"}
    report = reports(environment)[0]
    assert (report["dag"], report["recipe"]) == ("distill", "distill/0.8M_cpu")
    assert report["verdict"]["line"] == "Passed every gate"
    assert [made["role"] for made in report["chain"]] == ["teacher", "rows", "distilled"]
    assert [made["inputs"] for made in report["chain"]] == [[], [], ["teacher", "rows"]]
    assert report["chain"][2]["wall_seconds"] > 0 and report["chain"][2]["config"]["keep"] == 0.5
    (gate,) = report["gates"]
    assert (gate["name"], gate["outcome"]) == ("distillation", "pass")
    assert [limit["kept"] for limit in gate["limits"]] == [True, True]


def test_a_run_is_stopped_by_its_own_gate_and_is_reported(
    runs: list[dict[str, Any]], environment: dict[str, str]
) -> None:
    assert runs[1]["state"] == "failed", runs[1]
    assert runs[1]["tasks"]["distillation_gate"] == "failed"
    assert runs[1]["tasks"]["report"] == "success"
    report = reports(environment)[1]
    assert report["verdict"]["line"] == "Stopped by the distillation gate"
    (reason,) = report["verdict"]["reasons"]
    assert reason.startswith("loss of the kept rows over that of all: 0.9") and reason.endswith("limit at most 0.9")
    assert all(made["reused"] for made in report["chain"])
