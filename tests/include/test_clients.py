"""Whoever sends a token sends it straight to where it belongs: no HTTP client heeds HTTP_PROXY."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from include.home import PROJECT

_HEEDS_BY_DEFAULT = {"httpx": {"Client", "AsyncClient", "get", "post", "put", "delete", "request", "stream"}}
_HEEDS_WHERE_TOLD = {"aiohttp": {"ClientSession"}}
_HEEDS = {"urllib.request": {"urlopen"}, "requests": {"get", "post", "put", "delete", "request", "Session"}}
_TOKENLESS = {"include/laptop/lock.py"}
"""They ask a public package index, through the proxy where there is one."""


def _calls() -> Iterator[tuple[str, str, ast.Call]]:
    """Yield every call of a function of a module, with its file."""
    for room in ("dags", "include", "jobs", "operators", "plugins"):
        for path in sorted((PROJECT / room).rglob("*.py")):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            names = {}
            for node in ast.walk(tree):
                if isinstance(node, ast.ImportFrom) and node.module:
                    names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
            for node in ast.walk(tree):
                if isinstance(node, ast.Call):
                    called = ast.unparse(node.func)
                    yield str(path.relative_to(PROJECT)), names.get(called, called), node


def _is_one(called: str, clients: dict[str, set[str]]) -> bool:
    module, _, function = called.rpartition(".")
    return function in clients.get(module, ())


def test_every_client_is_told_to_ignore_the_environment_or_does_so_by_itself() -> None:
    seen, heeding = set(), []
    for file, called, node in _calls():
        told = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}.get("trust_env")
        by_default, where_told = _is_one(called, _HEEDS_BY_DEFAULT), _is_one(called, _HEEDS_WHERE_TOLD)
        if by_default or where_told:
            seen.add(file)
        if (by_default and told != "False") or (where_told and told not in (None, "False")):
            heeding.append((file, called))
        if _is_one(called, _HEEDS) and file not in _TOKENLESS:
            heeding.append((file, called))
    assert {"include/laptop/rest.py", "jobs/serving/canary/traffic/router.py"} <= seen
    assert heeding == []
