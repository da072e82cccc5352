"""A remedy is one of the platform on which it is read, names keys that are there, and is followed to the letter.

A test that meets a message, does what it says and sees that it helps has the mark `remedy`, with the text that it
follows, written as in the code; `…` stands for what is filled in.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from include.gates import find_gate, gate_names
from include.home import PROJECT
from include.model import Model
from include.platforms.cluster import Cluster
from include.recipes.document import Head
from include.release.rollouts import CanaryPolicy
from include.specs import config_class, job_names

_TARGETS = re.findall(r"^([a-z-]+):", (PROJECT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
_LAPTOP = re.compile(rf"\bmake ({'|'.join(_TARGETS)})\b|\.anemone\b|\blaptop\b")
"""What only a checkout has: its make targets and its folder."""

_KNOWN = {
    ("include/release/controller_client.py", "`make up` makes it"),
    ("include/release/controller_client.py", "`make up` starts it"),
    ("include/code_identity/__init__.py", "… is missing: run `make lock`"),
}
"""By file: what is said only where `ControllerClient._on_laptop` has found a laptop, and what only who changes the
environments of a checkout can meet, since every image has its lock files."""

_STAGES = {job: config_class(job) for job in job_names()}
_LIMITS = {gate: find_gate(gate).limits for gate in gate_names()}


def _names(models: list[type[Model]], *, alone: bool) -> str:
    """The fields' names as alternatives; `alone`: those that are no words of a sentence."""
    names = {name for model in models for name in model.model_fields if "_" in name or not alone}
    return "|".join(sorted(names))


_KEY = re.compile(
    rf"(?<![\w./-])(?:(?:{'|'.join(_STAGES)}|…)\.(?:{_names([*_STAGES.values()], alone=False)})\b"
    rf"|canary\.(?:{_names([CanaryPolicy], alone=False)})\b|cluster\.(?:{_names([Cluster], alone=False)})\b"
    rf"|gates\.(?:{'|'.join(_LIMITS)}|…)\.[\w…]+|sizes\.[\w…]+"
    rf"|(?:{_names([Head, *_STAGES.values(), *_LIMITS.values()], alone=True)})\b)(?![\w/(])"
)
"""A key of a recipe or a platform."""

_ACTION = re.compile(
    r"[Cc]lear (?:this|the)\b|\brun (?:customize|release|the DAG)\b|\brefresh\b|\boverrides?\b|\bParam\b"
)
_IMPERATIVE = re.compile(
    r"(?:^|[:;,.]|\bor\b|\band\b)\s*(?:add|bring|change|choose|correct|create|give|lower|name|put|raise|remove|request"
    r"|run|set|take|write)\b"
)
"""Where a message begins to say what to do."""


def _text(node: ast.AST) -> str:
    if isinstance(node, ast.JoinedStr):
        return "".join(map(_text, node.values))
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else "…"


def _messages(*rooms: str) -> Iterator[tuple[str, str]]:
    """Every sentence of the code but its docstrings, with its file; a single word is a name or a path."""
    for path in sorted(path for room in rooms for path in (PROJECT / room).rglob("*.py")):
        if {PROJECT / "include" / "laptop", PROJECT / "jobs" / "demo"} & set(path.parents):
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        parts = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
        documentation = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant | ast.JoinedStr) and id(node) not in parts | documentation:
                text = _text(node)
                if " " in text.strip():
                    yield str(path.relative_to(PROJECT)), text


def _remedies(message: str) -> list[re.Match[str]]:
    """What of Anemone's own a message says to use: keys where it begins to say what to do, actions anywhere."""
    begin = _IMPERATIVE.search(message)
    keys = _KEY.finditer(message, begin.start()) if begin else ()
    return [*keys, *_ACTION.finditer(message)]


@cache
def _followed() -> set[str]:
    """The texts of the mark `remedy`."""
    trees = (ast.parse(path.read_text(encoding="utf-8")) for path in Path(__file__).parents[1].rglob("test_*.py"))
    calls = (node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Call))
    marks = (node for node in calls if isinstance(node.func, ast.Attribute) and node.func.attr == "remedy")
    return {argument.value for node in marks for argument in node.args if isinstance(argument, ast.Constant)}


MESSAGES = dict.fromkeys(_messages("include", "jobs", "operators", "plugins"))


def test_no_other_message_names_a_make_target_or_a_laptops_folder() -> None:
    assert "up" in _TARGETS
    messages = {*MESSAGES, *_messages("dags")}
    assert {(file, text) for file, text in messages if _LAPTOP.search(text)} == _KNOWN


@pytest.mark.parametrize(("file", "message"), [message for message in MESSAGES if _remedies(message[1])])
def test_a_test_follows_every_remedy_of_a_message(file: str, message: str) -> None:
    spans = [found.span() for text in _followed() for found in re.finditer(re.escape(text), message)]
    missed = [
        found.group()
        for found in _remedies(message)
        if not any(start <= found.start() and found.end() <= end for start, end in spans)
    ]
    assert not missed, f"{file}: no test follows this: add one with the mark `remedy`, or word the message anew"


def test_every_mark_is_of_a_message() -> None:
    assert len(_followed()) > 50
    assert {text for text in _followed() if not any(text in message for _, message in MESSAGES)} == set()
