"""One module of the project: what it defines, and what acts when it is imported."""

from __future__ import annotations

import ast
import builtins
import sys
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

from include.code_identity.contract import covers
from include.code_identity.statement import Import, Statement, imports_of, read_statement, running

_QUIET = frozenset({*sys.stdlib_module_names, "pydantic"})
"""Libraries that a module can call at its import without more than a value coming of it."""

_RUNS_CODE = {"__import__", "eval", "exec"}
"""Python's own functions of which anything can come."""

_CONSTRUCTORS = {"__init__", "__new__", "__post_init__", "model_post_init"}


class Module:
    """The code of one module.

    Attributes:
        name: dotted.
        path: of its source.
        imports: what its import imports.
        bindings: the same, by the name that each binds.
        definitions: by name, the indices of the statements that define it.
        at_import: the indices of the statements that can do more than define a name.
    """

    def __init__(self, name: str, path: Path) -> None:
        self.name = name
        self.path = path
        self.imports: list[Import] = []
        self.bindings: dict[str, list[Import]] = {}
        self.definitions: dict[str, list[int]] = {}
        self.at_import: list[int] = []
        self._package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        self._nodes: list[ast.stmt] = []
        self._statements: dict[int, Statement] = {}
        self._plain_classes: set[str] = set()
        self._records: set[str] = set()
        for node in running(ast.parse(path.read_bytes()).body):
            self._add(node)
        for index, node in enumerate(self._nodes):
            if self._acts(node):
                self.at_import.append(index)
            elif isinstance(node, ast.ClassDef):
                self._plain_classes.add(node.name)
                if not _methods(node) & _CONSTRUCTORS and not (
                    {_root(base) for base in node.bases} & (self._plain_classes - self._records)
                ):
                    self._records.add(node.name)

    def __len__(self) -> int:
        """Return the number of its statements, imports aside."""
        return len(self._nodes)

    def __contains__(self, name: str) -> bool:
        """Return whether it is seen to define or to import a name."""
        return name in self.definitions or name in self.bindings

    def statement(self, index: int) -> Statement:
        """Return one statement; each is read when it is asked for first."""
        if index not in self._statements:
            self._statements[index] = read_statement(self._nodes[index], self._package)
        return self._statements[index]

    def _add(self, node: ast.stmt) -> None:
        defined = _defined(node)
        for name in defined:
            self.definitions.setdefault(name, []).append(len(self._nodes))
        for inner in [] if defined else ast.walk(node):
            if isinstance(inner, ast.Import | ast.ImportFrom):
                for item in imports_of(inner, self._package):
                    self.imports.append(item)
                    self.bindings.setdefault(item.bound, []).append(item)
        if not isinstance(node, ast.Import | ast.ImportFrom):
            self._nodes.append(node)

    def _acts(self, node: ast.stmt) -> bool:
        """Return whether a statement can do more than define a name when the module is imported.

        Whatever calls somebody else's code can: a decorator or a base class may register what it is given.
        """
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                defaults = [default for default in (*node.args.defaults, *node.args.kw_defaults) if default]
                return not all(map(self._is_quiet, (*node.decorator_list, *_calls(defaults))))
            case ast.ClassDef():
                bases = [base for base in node.bases if _root(base) not in self._plain_classes]
                return (
                    bool(node.keywords)
                    or "__init_subclass__" in _methods(node)
                    or not all(map(self._is_quiet, (*node.decorator_list, *bases)))
                    or any(map(self._acts, running(node.body)))
                )
            case ast.Assign() | ast.AnnAssign() | ast.AugAssign() if _defined(node):
                return not all(map(self._is_quiet, _calls([node.value] if node.value else [])))
        return True

    def _is_quiet(self, called: ast.expr) -> bool:
        """Return whether what is called is Python's own, pydantic's, behind the contract, or a plain record's class."""
        name = _root(called)
        if name is None or name in self._records:
            return True
        if found := self.bindings.get(name):
            return all(covers(item.module) or item.module.partition(".")[0] in _QUIET for item in found)
        return name not in self.definitions and name not in _RUNS_CODE and hasattr(builtins, name)


def read_module(name: str, path: Path) -> Module:
    """Return a module as its file is now; a process parses it again only when the file has changed."""
    status = path.stat()
    return _parsed(name, path, status.st_mtime_ns, status.st_size, status.st_ino)


@lru_cache(maxsize=1024)
def _parsed(name: str, path: Path, *_status: int) -> Module:
    return Module(name, path)


def _defined(node: ast.stmt) -> list[str]:
    """Return the names that a statement defines; none where it does, or may do, something else."""
    match node:
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
            return [name]
        case ast.Assign(targets=targets):
            nested = (target.elts if isinstance(target, ast.Tuple) else [target] for target in targets)
            parts = [part for target in nested for part in target]
        case ast.AnnAssign(target=target) | ast.AugAssign(target=target):
            parts = [target]
        case _:
            return []
    names = [part.id for part in parts if isinstance(part, ast.Name)]
    return names if len(names) == len(parts) else []


def _methods(node: ast.ClassDef) -> set[str]:
    return {inner.name for inner in node.body if isinstance(inner, ast.FunctionDef)}


def _calls(expressions: Iterable[ast.expr]) -> list[ast.expr]:
    """Return what is called in expressions."""
    inner = (node for expression in expressions for node in ast.walk(expression))
    return [node.func for node in inner if isinstance(node, ast.Call)]


def _root(expression: ast.expr) -> str | None:
    """Return the name with which an expression begins, as `a` of `a.b[c](d)`; None where that is no name."""
    while isinstance(expression, ast.Attribute | ast.Subscript | ast.Call):
        expression = expression.func if isinstance(expression, ast.Call) else expression.value
    return expression.id if isinstance(expression, ast.Name) else None
