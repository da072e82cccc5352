"""The public CI and the hooks before a commit run what the Makefile runs."""

from __future__ import annotations

import re
import shlex
from typing import Any

import yaml

from include.home import PROJECT


def document(path: str) -> dict[Any, Any]:
    return yaml.safe_load((PROJECT / path).read_text(encoding="utf-8"))


def test_the_workflow_runs_the_command_of_continuous_integration_on_both_pythons() -> None:
    workflow = document(".github/workflows/ci.yaml")
    # YAML 1.1 reads the key `on` as true.
    assert set(workflow[True]) == {"push", "pull_request"}
    (job,) = workflow["jobs"].values()
    assert job["strategy"]["matrix"]["python"] == ["3.11", "3.12"]
    commands = [step["run"] for step in job["steps"] if "run" in step]
    script = (PROJECT / ".ci/run").read_text(encoding="utf-8")
    assert commands == re.findall(r"^exec (.+)$", script, re.MULTILINE)


def test_actions_are_pinned_to_a_major_version() -> None:
    steps = document(".github/workflows/ci.yaml")["jobs"]["test"]["steps"]
    used = [step["uses"] for step in steps if "uses" in step]
    assert used
    assert [action for action in used if not re.fullmatch(r"actions/[a-z-]+@v\d+", action)] == []


def test_the_hooks_are_those_of_make_lint() -> None:
    recipe = re.search(r"^lint:.*\n\t@(.+)$", (PROJECT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert recipe is not None
    (repository,) = document(".pre-commit-config.yaml")["repos"]
    assert repository["repo"] == "local"
    home = "${ANEMONE_HOME:-.anemone}/venvs/airflow/bin"
    commands = [shlex.split(shlex.split(hook["entry"])[-1]) for hook in repository["hooks"]]
    linted = [shlex.split(command.replace("$(AIRFLOW)", home)) for command in recipe[1].split(" && ")]
    assert commands == linted
