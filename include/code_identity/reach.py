"""What of the project a job's code reaches: from its package and its spec, by import and by name.

Of the job's own modules everything counts. Of a module that they import, what counts is what can act at its import, and
the definitions that counted code names, so that a changed helper changes the jobs that compute with it and no other.
Where code does not say what it names, more counts, never less.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from include.code_identity.contract import covers
from include.code_identity.module import Module, read_module
from include.code_identity.statement import ANYTHING, IMPORTERS, Import, Statement

_ROOMS = ("include", "jobs")


@dataclass
class Reached:
    """What counts for a job.

    Attributes:
        code: by module, the digests (hex) of its statements that count, in their order, then of its imports.
        files: data beside the modules that look there.
        libraries: top-level modules of other projects that it imports.
        paths: text that may be the dotted name of something in a library.
        everything: it makes up names of modules; so any module and any library may count.
    """

    code: dict[str, list[str]] = field(default_factory=dict)
    files: set[Path] = field(default_factory=set)
    libraries: set[str] = field(default_factory=set)
    paths: set[str] = field(default_factory=set)
    everything: bool = False


def reach(project: Path, package: Path, spec: str) -> Reached:
    """Return what a job reaches. What stores, tells and measures is not followed.

    Args:
        project: the folder with `include/` and `jobs/`.
        package: the job's folder; all that lies in it counts.
        spec: the dotted name of its spec's module; all of it counts.
    """
    walk = _Walk(project)
    walk.folder(package)
    walk.whole(spec)
    return walk.finish()


class _Walk:
    def __init__(self, project: Path) -> None:
        self._project = project
        self._paths: dict[str, Path | None] = {}
        self._modules: dict[str, Module] = {}
        self._taken: dict[str, set[int]] = {}
        self._bound: dict[str, set[Import]] = {}
        self._pending: list[tuple[Module, int]] = []
        self._whole: set[str] = set()
        self._reached = Reached()

    def finish(self) -> Reached:
        """Follow all that was taken, to the end."""
        while self._pending:
            module, index = self._pending.pop()
            self._follow(module, module.statement(index))
        for name, module in self._modules.items():
            digests = [module.statement(index).form for index in sorted(self._taken[name])]
            imports = sorted(map(repr, self._bound[name]))
            if digests or imports:
                self._reached.code[name] = digests + imports
        return self._reached

    def folder(self, folder: Path) -> None:
        """Take every module in a folder, and its data files."""
        for name in self._modules_in(folder):
            self.whole(name)
        self._data(folder)

    def whole(self, name: str) -> None:
        """Take every statement of a module of the project."""
        module = self._import(name)
        if module is None or name in self._whole:
            return
        self._whole.add(name)
        for index in range(len(module)):
            self._take(module, index)
        for item in module.imports:
            self._bound[name].add(item)
            if item.member is not None and not self._is_submodule(item):
                self._use_import(item, None)

    def _import(self, name: str) -> Module | None:
        """Take what can act when a module is imported; return it, or None where it is no module that counts."""
        if name in self._modules:
            return self._modules[name]
        top, _, _ = name.partition(".")
        if top not in _ROOMS:
            self._reached.libraries.add(top)
            return None
        if covers(name):
            return None
        if above := name.rpartition(".")[0]:
            self._import(above)
            # A package may have imported its module.
            if name in self._modules:
                return self._modules[name]
        path = self._path(name)
        if path is None:
            return None
        module = self._modules[name] = read_module(name, path)
        self._taken[name] = set()
        self._bound[name] = set()
        for index in module.at_import:
            self._take(module, index)
        for item in module.imports:
            self._execute(item)
        return module

    def _execute(self, item: Import) -> None:
        """Import what an import statement imports; which of its names count is another matter."""
        self._import(item.module)
        if item.member == "*":
            self.whole(item.module)
        elif self._is_submodule(item):
            self._import(f"{item.module}.{item.member}")

    def _take(self, module: Module, index: int) -> None:
        if index not in self._taken[module.name]:
            self._taken[module.name].add(index)
            self._pending.append((module, index))

    def _follow(self, module: Module, statement: Statement) -> None:
        inner: dict[str, list[Import]] = {}
        for item in statement.imports:
            self._execute(item)
            inner.setdefault(item.bound, []).append(item)
        for name in statement.names:
            self._use(module, inner, name, None)
        for name, attribute in statement.attributes:
            self._use(module, inner, name, attribute)
        for path in statement.paths:
            self._named_by_text(path)
        for prefix in statement.prefixes:
            self._prefix(prefix)
        if statement.is_wide:
            self.whole(module.name)
        if statement.reads_beside:
            self._data(module.path.parent)

    def _use(self, module: Module, inner: dict[str, list[Import]], name: str, attribute: str | None) -> None:
        """Take what a name stands for, of which code uses one attribute, or all."""
        for index in module.definitions.get(name, ()):
            self._take(module, index)
        for item in module.bindings.get(name, ()):
            self._bound[module.name].add(item)
            self._use_import(item, attribute)
        for item in inner.get(name, ()):
            self._use_import(item, attribute)

    def _use_import(self, item: Import, attribute: str | None) -> None:
        if item.member in IMPORTERS and item.bound != item.member:
            self._prefix(ANYTHING)
        if item.member is not None and not self._is_submodule(item):
            self._ask(item.module, item.member)
            return
        target = item.module if item.member is None else f"{item.module}.{item.member}"
        if attribute is None or item.bound == target.partition(".")[0] != target:
            self.whole(target)
        else:
            self._ask(target, attribute)

    def _ask(self, name: str, member: str) -> None:
        """Take what a module gives under a name."""
        module = self._import(name)
        if module is None:
            return
        if member == "*" or (member not in module and self._path(f"{name}.{member}") is None):
            self.whole(name)  # it is made by other means than a definition
        elif member not in module:
            self.whole(f"{name}.{member}")
        else:
            self._use(module, {}, member, None)

    def _is_submodule(self, item: Import) -> bool:
        """Return whether `from module import member` gives a module of the project."""
        if item.member is None or item.module.partition(".")[0] not in _ROOMS:
            return False
        if self._path(f"{item.module}.{item.member}") is None:
            return False
        above = self._import(item.module)
        return above is None or item.member not in above

    def _named_by_text(self, text: str) -> None:
        """Take the module of the project that a text names, as in `_target_`."""
        if text.partition(".")[0] not in _ROOMS:
            self._reached.paths.add(text)
            return
        while text and self._path(text) is None:
            text = text.rpartition(".")[0]
        if text:
            self.whole(text)

    def _prefix(self, prefix: str) -> None:
        """Take the modules whose names begin so."""
        if prefix == ANYTHING:
            self._reached.everything = True
        elif prefix.partition(".")[0] not in _ROOMS:
            self._import(prefix.partition(".")[0])
            return
        for room in _ROOMS if prefix == ANYTHING else [prefix.rpartition(".")[0]]:
            for name in self._modules_in(self._project.joinpath(*room.split("."))):
                if name.startswith(prefix):
                    self.whole(name)

    def _modules_in(self, folder: Path) -> list[str]:
        found = (path.relative_to(self._project).with_suffix("").parts for path in folder.rglob("*.py"))
        return sorted(".".join(parts[:-1] if parts[-1] == "__init__" else parts) for parts in found)

    def _data(self, folder: Path) -> None:
        self._reached.files.update(
            path
            for path in folder.rglob("*")
            if path.suffix != ".py" and path.is_file() and "__pycache__" not in path.parts
        )

    def _path(self, name: str) -> Path | None:
        if name not in self._paths:
            base = self._project.joinpath(*name.split("."))
            found = (path for path in (base / "__init__.py", base.with_suffix(".py")) if path.is_file())
            self._paths[name] = next(found, None)
        return self._paths[name]
