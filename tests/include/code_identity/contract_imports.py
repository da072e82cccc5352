"""What the modules behind the contract import."""

from __future__ import annotations

from collections.abc import Iterator

from include.code_identity.contract import covers
from include.code_identity.module import read_module
from include.code_identity.statement import Import
from include.home import PROJECT


def contract_imports() -> Iterator[tuple[str, Import]]:
    """Yield (module, what it imports), also of imports within functions."""
    for path in (*(PROJECT / "include").rglob("*.py"), *(PROJECT / "jobs").rglob("*.py")):
        parts = path.relative_to(PROJECT).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        if covers(name):
            module = read_module(name, path)
            statements = map(module.statement, range(len(module)))
            for item in (*module.imports, *(item for statement in statements for item in statement.imports)):
                yield name, item
