"""The keys of a recipe that messages name, for a person to override: each is one."""

from __future__ import annotations

import ast
import re
from typing import get_args

import pytest

from include.gates import find_gate, gate_names
from include.home import PROJECT
from include.model import Model
from include.release.rollouts import CanaryPolicy
from include.specs import config_class, job_names, spec_class

ROOTS: dict[str, type[Model]] = {
    **{job: config_class(job) for job in job_names()},
    "canary": CanaryPolicy,
    **{f"gates.{gate}": find_gate(gate).limits for gate in gate_names()},
}
_KEY = re.compile(rf"(?<![\w./-])({'|'.join(map(re.escape, ROOTS))})((?:\.[a-z_]+)+)(?![\w/(])")
_FILES = ("json", "jsonl", "yaml", "py", "md", "html")


def messages() -> list[tuple[str, str]]:
    """Every text of the code but its docstrings, with its place."""
    found = []
    for folder in ("include", "jobs", "operators", "dags"):
        for path in sorted((PROJECT / folder).rglob("*.py")):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            told = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
            found += [
                (f"{path.relative_to(PROJECT)}:{node.lineno}", node.value)
                for node in ast.walk(tree)
                if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in told
            ]
    return found


def test_where_memory_ran_out_a_key_of_the_jobs_own_stage_is_named() -> None:
    keys = {job: spec_class(job).memory_key for job in job_names()}
    assert keys["finetune"] and keys["curate"] is None
    for job, key in keys.items():
        assert key is None or key.split(".") in [[job, name] for name in config_class(job).model_fields]
        assert spec_class(job).more_memory("buy some") == (f"lower {key}, or buy some" if key else "buy some")


NAMED = [
    pytest.param(match[1], match[2].removeprefix(".").split("."), id=f"{place} {match[0]}")
    for place, text in messages()
    if " " in text
    for match in _KEY.finditer(text)
    if match[2].rpartition(".")[2] not in _FILES
]


def test_messages_name_keys() -> None:
    assert len(NAMED) > 15


@pytest.mark.parametrize(("root", "path"), NAMED)
def test_a_key_that_a_message_names_can_be_overridden(root: str, path: list[str]) -> None:
    model = ROOTS[root]
    for number, key in enumerate(path):
        assert key in model.model_fields, f"{root} has no {'.'.join(path[: number + 1])}"
        annotation = model.model_fields[key].annotation
        nested = [kind for kind in (annotation, *get_args(annotation)) if isinstance(kind, type)]
        model = next((kind for kind in nested if issubclass(kind, Model)), model)
