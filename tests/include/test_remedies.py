"""A remedy is one of the platform on which it is read: `make up` is a laptop's."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from include.home import PROJECT

_TARGETS = re.findall(r"^([a-z-]+):", (PROJECT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
_LAPTOP = re.compile(rf"\bmake ({'|'.join(_TARGETS)})\b|\.anemone\b|\blaptop\b")
"""What only a checkout has: its make targets and its folder."""

_KNOWN = {
    ("include/release/controller_client.py", "`make up` makes it"),
    ("include/release/controller_client.py", "`make up` starts it"),
    ("include/code_identity/__init__.py", " is missing: run `make lock`"),
}
"""By file: what is said only where `ControllerClient._on_laptop` has found a laptop, and what only who changes the
environments of a checkout can meet, since every image has its lock files."""


def _documentation(tree: ast.AST) -> Iterator[int]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            yield id(node.value)


def test_no_other_message_names_a_make_target_or_a_laptops_folder() -> None:
    assert "up" in _TARGETS
    found = set()
    for room in ("dags", "include", "jobs", "operators", "plugins"):
        for path in sorted((PROJECT / room).rglob("*.py")):
            if (PROJECT / "include" / "laptop") in path.parents or (PROJECT / "jobs" / "demo") in path.parents:
                continue
            tree = ast.parse(path.read_text(encoding="utf-8"))
            documentation = set(_documentation(tree))
            for node in ast.walk(tree):
                text = node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""
                # A sentence; a single word is a name or a path.
                if id(node) not in documentation and " " in text.strip() and _LAPTOP.search(text):
                    found.add((str(path.relative_to(PROJECT)), text))
    assert found == _KNOWN
