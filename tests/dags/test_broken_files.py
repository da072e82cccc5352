"""A file that somebody broke costs what needs it, and no DAG that does not."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from itertools import cycle
from typing import Any

import pytest

from include.home import PROJECT

DAGS = sorted(path.stem for path in (PROJECT / "dags").glob("*.py"))
RECIPES = sorted(
    path.relative_to(PROJECT / "include/recipes").with_suffix("").as_posix()
    for path in (PROJECT / "include" / "recipes").glob("*/*.yaml")
)
OWN, OTHER = "demo/0.8M_lora_cpu", "own/0.8M_lora_cpu"
"""The recipe of the laptop's arrivals, and another one."""


def recipe(name: str) -> str:
    return f"include/recipes/{name}.yaml"


@dataclass(frozen=True)
class Damage:
    """Files that are written over, by path in the project, with the content that each gets; None: it is removed.

    A content that is a directory's is [] and that of a link to nowhere is "->".
    """

    files: dict[str, str | list | None]
    raw: dict[str, str] = field(default_factory=dict)
    """Bytes that no text has, as hexadecimal digits."""


def added(path: str, text: str) -> str:
    return (PROJECT / path).read_text(encoding="utf-8") + text


HOW = cycle(["no YAML: {", "", "- a list", "description: a recipe without a model\nfinetune: {}\n", [], "->", "42"])
"""Ways in which a recipe can be broken."""

CASES = {
    "nothing": Damage({}),
    "one recipe has an unknown key": Damage({recipe(OTHER): added(recipe(OTHER), "\nstepz: 1\n")}),
    "one recipe is no YAML": Damage({recipe(OTHER): "finetune: {\n"}),
    "one recipe is no text": Damage({}, {recipe(OTHER): b"\xff\xfe\nfinetune: {}\n".hex()}),
    "the platform's own recipe is no YAML": Damage({recipe(OWN): "finetune: {\n"}),
    "the platform's own recipe is gone": Damage({recipe(OWN): None}),
    "each recipe but one is broken in another way": Damage(
        {recipe(name): how for name, how in zip((name for name in RECIPES if name != OWN), HOW, strict=False)}
    ),
    "every recipe is broken": Damage({recipe(name): "finetune: {\n" for name in RECIPES}),
    "every other platform is broken": Damage(
        {f"include/platforms/{name}.yaml": "{" for name in ("compose", "cpu-cluster", "eks-a100", "eks-h100")}
    ),
    "a template is no text": Damage({}, {"include/templates/kubectl.jinja": "ff"}),
    "a template is gone": Damage({"include/templates/kubectl.jinja": None}),
    "a suite is no JSON": Damage({"include/expectations/kubectl.json": "{"}),
    "a suite has an unknown key": Damage(
        {"include/expectations/kubectl.json": json.dumps({"name": "x", "expectations": [{"typ": "a"}]})}
    ),
    "a job's spec is no Python": Damage({"include/specs/merge.py": "def"}),
    "a gate that a recipe names is no Python": Damage(
        {
            "include/gates/mine.py": "def",
            recipe(OTHER): added(recipe(OTHER), "").replace("gates:", "gates:\n  mine: {}"),
        }
    ),
}

PROGRAM = """
import json, logging, os, shutil, sys
from pathlib import Path
from airflow.dag_processing.dagbag import DagBag

class Lines(logging.Handler):
    def emit(self, record):
        lines.append(record.getMessage())

def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    if content == "->":
        path.symlink_to("/nowhere")
    elif content == []:
        path.mkdir()
    elif content is not None:
        path.write_bytes(content) if isinstance(content, bytes) else path.write_text(content)

def params(dag):
    return {name: {"value": dag.params.get_param(name).value, **dag.params.get_param(name).schema}
            for name in dag.params}

cases = json.load(sys.stdin)
for number, (name, case) in enumerate(cases.items()):
    # A process of its own, as each file that the dag-processor parses has one; the libraries are there already.
    if os.fork():
        os.wait()
        continue
    project = Path(f"{sys.argv[1]}-{number}")
    shutil.copytree(sys.argv[1], project)
    for path, content in case["files"].items():
        write(project / path, content)
    for path, content in case["raw"].items():
        write(project / path, bytes.fromhex(content))
    sys.path.insert(0, str(project))
    lines = []
    logging.getLogger("operators").addHandler(Lines())
    bag = DagBag(str(project / "dags"))
    found = {
        "errors": bag.import_errors,
        "params": {dag.dag_id: params(dag) for dag in bag.dags.values()},
        "log": lines,
    }
    print(json.dumps([name, found]), flush=True)
    os._exit(0)
"""


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What Airflow finds in a copy of the project with each damage: import errors, Params by DAG, the forms' log."""
    folder = tmp_path_factory.mktemp("broken")
    project = folder / "project"
    for name in ("dags", "include", "operators"):
        shutil.copytree(PROJECT / name, project / name, ignore=shutil.ignore_patterns("__pycache__"))
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("AIRFLOW", "ANEMONE"))}
    environment |= {"AIRFLOW_HOME": str(folder / "airflow"), "PYTHONPATH": "", "PYTHONDONTWRITEBYTECODE": "1"}
    environment["AIRFLOW__CORE__LOAD_EXAMPLES"] = "False"
    cases = {name: {"files": case.files, "raw": case.raw} for name, case in CASES.items()}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(project)],
        input=json.dumps(cases),
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = dict(json.loads(line) for line in done.stdout.splitlines() if line.startswith('["'))
    assert list(found) == list(CASES), done.stderr[-3000:]
    return found


def broken_in(outcome: dict[str, Any]) -> str:
    """What the form of `customize` says of broken recipes."""
    return outcome["params"]["customize"]["recipe"]["description_md"].partition("**Broken:** ")[2]


@pytest.mark.parametrize("case", CASES)
def test_no_dag_is_lost(outcomes: dict[str, Any], case: str) -> None:
    assert outcomes[case]["errors"] == {}
    assert sorted(outcomes[case]["params"]) == DAGS


def test_where_all_is_well_the_forms_say_nothing(outcomes: dict[str, Any]) -> None:
    outcome = outcomes["nothing"]
    assert outcome["log"] == []
    assert not any(
        "**" in param.get("description_md", "") for form in outcome["params"].values() for param in form.values()
    )
    assert "values_display" not in outcome["params"]["customize"]["recipe"]


@pytest.mark.parametrize(
    ("case", "name", "reason"),
    [
        ("one recipe has an unknown key", OTHER, "unknown key 'stepz'"),
        ("one recipe is no YAML", OTHER, "no YAML: line 2, column 1"),
        ("one recipe is no text", OTHER, "not UTF-8"),
        ("the platform's own recipe is no YAML", OWN, "no YAML"),
        ("the platform's own recipe is gone", OWN, "there is no recipe 'demo/0.8M_lora_cpu': did you mean"),
        ("a template is no text", OWN, "include/templates/kubectl.jinja cannot be read (not UTF-8"),
        ("a template is gone", OWN, "which include/templates/ does not hold"),
        ("a suite is no JSON", OWN, "include/expectations/kubectl.json cannot be read (no JSON"),
        ("a suite has an unknown key", OWN, "expectations.0"),
        ("a job's spec is no Python", OWN, "SyntaxError"),
        ("a gate that a recipe names is no Python", OTHER, "SyntaxError"),
    ],
)
def test_a_broken_recipe_is_named_with_its_reason_in_the_form_and_once_in_the_log(
    outcomes: dict[str, Any], case: str, name: str, reason: str
) -> None:
    outcome = outcomes[case]
    assert f"`{name}`" in broken_in(outcome) and reason in broken_in(outcome)
    (line,) = (line for line in outcome["log"] if line.startswith(f"the forms' recipe {name} "))
    assert reason in line


def test_a_recipe_that_is_broken_alone_leaves_the_others_as_they_were(outcomes: dict[str, Any]) -> None:
    recipe, before = (outcomes[case]["params"]["customize"]["recipe"] for case in ("one recipe is no YAML", "nothing"))
    assert (recipe["value"], recipe["enum"]) == (before["value"], before["enum"])
    assert [name for name, shown in recipe["values_display"].items() if name != shown] == [OTHER]


def test_a_platforms_own_recipe_stays_the_one_that_starts_by_itself(outcomes: dict[str, Any]) -> None:
    """What a cron or an arrival starts must not be another model's training because that one is broken."""
    assert outcomes["the platform's own recipe is no YAML"]["params"]["customize"]["recipe"]["value"] == OWN


def test_each_of_several_broken_recipes_is_named(outcomes: dict[str, Any]) -> None:
    said = broken_in(outcomes["each recipe but one is broken in another way"])
    assert [name for name in RECIPES if f"`{name}`" not in said] == [OWN]


@pytest.mark.parametrize("form", ["release", "rollback"])
def test_a_form_offers_the_models_that_may_be_registered_though_their_recipes_are_broken(
    outcomes: dict[str, Any], form: str
) -> None:
    well = outcomes["nothing"]["params"][form]["model"]
    assert outcomes["one recipe has an unknown key"]["params"][form]["model"] == well
    assert outcomes["a template is gone"]["params"][form]["model"] == well
    lost = outcomes["one recipe is no YAML"]["params"][form]["model"]
    assert lost["value"] == well["value"] and set(lost["examples"]) < set(well["examples"])
    assert f"`{OTHER}`" in lost["description_md"]
    none = outcomes["every recipe is broken"]["params"][form]["model"]
    assert (none["value"], none["examples"]) == (None, [])
    assert all(f"`{name}`" in none["description_md"] for name in RECIPES)
