"""One statement as code: its canonical form, and what it names.

The form is the syntax tree without positions, docstrings and what only type checkers read, so that comments and
formatting leave it as it is. Every Python from 3.11 on writes the same one, unlike `ast.dump` and `ast.unparse`: both
sides of a job compare it, and an image may have another Python than Airflow.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

ANYTHING = ""
"""The prefix of a module's name of which nothing is known before the code runs."""

IMPORTERS = frozenset({"__import__", "find_spec", "import_module", "run_module", "run_path"})
"""Functions that take a module's name."""

_FINDERS = {"config_class": "include.specs.", "spec_class": "include.specs."}
"""Functions behind the contract that import by place, and how the names of what they import begin."""

_WIDE = frozenset({"__dict__", "eval", "exec", "globals", "locals", "vars"})
"""Names by which code reaches what it does not name."""

_BESIDE = frozenset({"__file__", "__package__", "__path__", "__spec__"})
"""Names by which a module finds its own folder."""

_LEFT_OUT = frozenset({"ctx", "kind", "type_comment", "type_ignores"})
"""Fields of the tree that cannot change what runs."""


@dataclass(frozen=True)
class Import:
    """One name that an import statement binds.

    Attributes:
        bound: the name; of `import a.b` it is `a`.
        module: what is imported, absolute.
        member: of `from module import member`; None where the module itself is meant.
    """

    bound: str
    module: str
    member: str | None = None


@dataclass
class Statement:
    """What one statement is and names, with all that is in it.

    Attributes:
        form: digest (hex) of its canonical form.
        names: that it uses, and text that could be one, as in `getattr(module, "name")` or a quoted annotation.
        attributes: (name, attribute) of what it uses of a name.
        paths: text that could be the dotted name of a module, or of something in one.
        imports: wherever they are in it.
        prefixes: how the names of modules begin that it makes up; `ANYTHING` where that is not known.
        is_wide: it can reach every definition of its module without naming it.
        reads_beside: it can find the folder of its module, and what lies there.
    """

    form: str = ""
    names: set[str] = field(default_factory=set)
    attributes: set[tuple[str, str]] = field(default_factory=set)
    paths: set[str] = field(default_factory=set)
    imports: list[Import] = field(default_factory=list)
    prefixes: set[str] = field(default_factory=set)
    is_wide: bool = False
    reads_beside: bool = False


def read_statement(node: ast.stmt, package: str) -> Statement:
    """Return what a statement is and names.

    Args:
        package: of its module, for relative imports.
    """
    reader = _Reader(package)
    reader.found.form = hashlib.sha256(reader.form(node).encode()).hexdigest()
    return reader.found


def running(body: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    """Yield the statements of a block that do something: no docstring, and nothing that only type checkers read."""
    for node in body:
        match node:
            case ast.Pass() | ast.Expr(value=ast.Constant()):
                continue
            case ast.If(test=ast.Name(id="TYPE_CHECKING") | ast.Attribute(attr="TYPE_CHECKING")):
                yield from running(node.orelse)
            case _:
                yield node


def imports_of(node: ast.Import | ast.ImportFrom, package: str) -> list[Import]:
    """Return what an import statement in a module of `package` binds."""
    if isinstance(node, ast.Import):
        return [Import(alias.asname or alias.name.partition(".")[0], alias.name) for alias in node.names]
    above = package.split(".")[: package.count(".") + 2 - node.level] if node.level else []
    module = ".".join([*above, *([node.module] if node.module else [])])
    return [Import(alias.asname or alias.name, module, alias.name) for alias in node.names]


class _Reader:
    """Writes the form of a statement, and notes on the way what it names."""

    def __init__(self, package: str) -> None:
        self.found = Statement()
        self._package = package

    def form(self, value: Any) -> str:
        match value:
            case ast.Name(id=name):
                self.found.names.add(name)
                self._note(name)
            case ast.Attribute(value=ast.Name(id=name), attr=attribute):
                self.found.attributes.add((name, attribute))
                self._note(name)
                self._note(attribute)
                return f"Attribute({name}.{attribute})"
            case ast.Attribute(attr=attribute):
                self._note(attribute)
            case ast.Constant(value=str(text)):
                self._note_text(text)
            case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name), args=[first, *_]) if name in IMPORTERS:
                known = set(self.found.prefixes)
                function = self.form(value.func)
                self.found.prefixes = known
                self._note_import(first)
                return f"Call({function},{self.form(value.args)},{self.form(value.keywords)})"
            case ast.Import() | ast.ImportFrom():
                self.found.imports.extend(imports_of(value, self._package))
            case ast.JoinedStr(values=values):
                return f"JoinedStr({self.form(_joined(values))})"
        if isinstance(value, ast.AST):
            fields = ((name, getattr(value, name)) for name in value._fields if name not in _LEFT_OUT)
            # What is empty is left out, and so is what only a newer Python knows.
            parts = [f"{name}={self.form(item)}" for name, item in fields if item is not None and item != []]
            return f"{type(value).__name__}({','.join(parts)})"
        if isinstance(value, list):
            items = running(value) if value and isinstance(value[0], ast.stmt) else value
            return f"[{','.join(map(self.form, items))}]"
        # Not repr: which characters can be printed is another matter in every Python.
        return ascii(value)

    def _note(self, name: str) -> None:
        self.found.is_wide |= name in _WIDE
        self.found.reads_beside |= name in _BESIDE
        if name in IMPORTERS:
            self.found.prefixes.add(ANYTHING)
        elif name in _FINDERS:
            self.found.prefixes.add(_FINDERS[name])

    def _note_text(self, text: str) -> None:
        if text.isidentifier():
            self.found.names.add(text)
        elif all(part.isidentifier() for part in text.split(".")):
            self.found.paths.add(text)

    def _note_import(self, name: ast.expr) -> None:
        match name:
            case ast.Constant(value=str(text)) if not text.startswith("."):
                self.found.imports.append(Import("", text))
                self.found.paths.add(text)
            case ast.JoinedStr(values=[ast.Constant(value=str(text)), *_]):
                self.found.prefixes.add(text)
            case _:
                self.found.prefixes.add(ANYTHING)


def _joined(values: Iterable[ast.expr]) -> list[ast.expr]:
    """Return the parts of an f-string with neighbouring texts as one: not every Python splits it alike."""
    parts: list[ast.expr] = []
    for value in values:
        match parts, value:
            case [*_, ast.Constant(value=str(before))], ast.Constant(value=str(text)):
                parts[-1] = ast.Constant(before + text)
            case _:
                parts.append(value)
    return [part for part in parts if not (isinstance(part, ast.Constant) and part.value == "")]
