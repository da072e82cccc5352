"""The canonical form of code, and what code names."""

from __future__ import annotations

import ast
import hashlib

import pytest

from include.code_identity.statement import ANYTHING, Import, Statement, imports_of, read_statement, running

EVERY_SYNTAX = r'''
@decorated(1, *more, key=2, **options)
async def function(first, /, second: int = 3, *rest, third=None, **named) -> "str":
    """A docstring."""
    global state
    async with opened() as one, opened() as (two, three):
        async for item in one:
            yield item
    await two
    result = [x for x in rest if x and not first]
    return {**named, "a": {1, 2}, "b": {k: v async for k, v in three}}, (y for y in result)

class Name(Base, metaclass=Meta):
    """A docstring."""
    field: int
    other: float = 1.5e-3

def plain():
    pass

try:
    del a[1:2, ...], b.c
except* (ValueError, TypeError) as error:
    raise RuntimeError from error
else:
    x = y = 1 if a else -2
finally:
    x += 0x_ff << 3 | ~1 ^ 0o17 ** 2 @ m // 3 % 4
match command:
    case [Point(x=0, y=0), *_] | {"key": str(text), **rest} if text:
        assert text, "message"
    case None | -1 | 1j | "a" "b" as found:
        pass
    case _:
        ...
while (n := next(it)) is not None and 1 < n <= 2 != 3 not in q:
    if n: break
    elif m: continue
    else: nonlocal_ = lambda *a, b=1: (yield)
for i, (j, *k) in z: print(f"{i!r:>{width}.2f} and {j=}" "tail" f"{{}}", rb"\x00\n", 'é한\ud800', u"u", 1_000, 1e400)
from . import sibling
from ..above import thing as other
import a.b.c as d, e.f
'''
"""What Python 3.11 can write."""


def read(code: str) -> Statement:
    (node,) = ast.parse(code).body
    return read_statement(node, "jobs.train")


def forms(code: str) -> list[str]:
    return [read_statement(node, "jobs.train").form for node in running(ast.parse(code).body)]


def test_every_python_writes_the_same_form() -> None:
    """Made by 3.11; another Python that does not agree would make every image refuse what Airflow planned."""
    whole = hashlib.sha256("".join(forms(EVERY_SYNTAX)).encode()).hexdigest()
    assert whole == "4663df48dd6239b530d23dcae49e6d3fdbb16de65b1fc6777fa6599e01c1e134"


@pytest.mark.parametrize(
    ("code", "same"),
    [
        ("x = 1", "x  =  (1)  # one"),
        ("x = 'a'", 'x = "a"'),
        ("x = 16", "x = 0x10"),
        ("x = 'ab'", "x = 'a' u'b'"),
        ("def f():\n  return 1", 'def f():\n    """Return 1."""\n    return 1'),
        ("def f(): pass", 'def f():\n    """Do nothing."""'),
        ("class A:\n  x = 1", 'class A:\n    """Has an x."""\n    x = 1\n    """One."""'),
        ("x = 1", '"""About it."""\nx = 1\n"""One."""'),
        ("x = 1", "if TYPE_CHECKING:\n    from a import b\nx = 1"),
        ("x = 1", "if typing.TYPE_CHECKING:\n    y = 1\nelse:\n    x = 1"),
        ("def f():\n  x = 1", "def f():\n  if TYPE_CHECKING:\n    y = 1\n  x = 1"),
        ("x = f'a{b}c'", "x = 'a' f'{b}' 'c'"),
        ("x = f'a{b}'", "x = f'a{b}' f''"),
    ],
)
def test_what_cannot_change_what_runs_is_no_part_of_the_form(code: str, same: str) -> None:
    assert forms(code) == forms(same)


@pytest.mark.parametrize(
    ("code", "other"),
    [
        ("x = 1", "x = 1.0"),
        ("x = 1", "x = True"),
        ("x = 'a'", "x = b'a'"),
        ("x = 'a'", "x = a"),
        ("x = 'é'", "x = 'e\u0301'"),
        ("x = None", "x = ..."),
        ("x = -1", "x = 1"),
        ("x = (1, 2)", "x = [1, 2]"),
        ("x = {**a}", "x = {a: a}"),
        ("x = f'{a}'", "x = f'{a!r}'"),
        ("x = f'{a:b}'", "x = f'{a}'"),
        ("def f(a, b): pass", "def f(a, *, b): pass"),
        ("def f(): return", "def f(): yield"),
        ("def f(): pass", "async def f(): pass"),
        ("def f(): pass", "def f(): raise"),
        ("x = y if z else w", "x = z if y else w"),
        ("if a: b()", "while a: b()"),
        ("x = import_module('a', 'b')", "x = import_module('a', 'c')"),
        ("x = a.import_module('b')", "x = c.import_module('b')"),
    ],
)
def test_what_can_is(code: str, other: str) -> None:
    assert forms(code) != forms(other)


def test_what_a_statement_names() -> None:
    found = read(
        "def f(a: 'Quoted'):\n  x = first.part.deeper(second)\n  return getattr(third, 'name') + call().attribute"
    )
    assert {"Quoted", "second", "third", "name", "getattr", "call", "x"} <= found.names
    assert "first" not in found.names
    assert found.attributes == {("first", "part")}
    assert not found.is_wide and not found.reads_beside and not found.prefixes


def test_imports_are_found_wherever_they_are_except_for_type_checkers() -> None:
    found = read(
        "def f():\n  if TYPE_CHECKING:\n    import unseen\n  with a:\n    from b import c as d\n    import e.f, g as h"
    )
    assert found.imports == [Import("d", "b", "c"), Import("e", "e.f"), Import("h", "g")]


@pytest.mark.parametrize(
    ("code", "package", "module"),
    [
        ("from . import x", "jobs.train", "jobs.train"),
        ("from .a import x", "jobs.train", "jobs.train.a"),
        ("from ..a.b import x", "jobs.train", "jobs.a.b"),
        ("from .. import x", "jobs.train.deep", "jobs.train"),
    ],
)
def test_relative_imports_are_made_absolute(code: str, package: str, module: str) -> None:
    (node,) = ast.parse(code).body
    assert isinstance(node, ast.ImportFrom)
    assert imports_of(node, package) == [Import("x", module, "x")]


@pytest.mark.parametrize(
    ("code", "prefixes", "modules"),
    [
        ("import_module('a.b')", set(), ["a.b"]),
        ("importlib.util.find_spec('a')", set(), ["a"]),
        ("import_module(f'include.gates.{name}')", {"include.gates."}, []),
        ("import_module(name)", {ANYTHING}, []),
        ("import_module('.b', package)", {ANYTHING}, []),
        ("__import__(name)", {ANYTHING}, []),
        ("list(map(import_module, names))", {ANYTHING}, []),
        ("load = importlib.import_module", {ANYTHING}, []),
        ("spec_class(name).__doc__", {"include.specs."}, []),
    ],
)
def test_imports_by_name(code: str, prefixes: set[str], modules: list[str]) -> None:
    found = read(code)
    assert found.prefixes == prefixes
    assert [item.module for item in found.imports] == modules


def test_text_that_may_name_a_module() -> None:
    assert read("x = {'_target_': 'torch.optim.AdamW', 'y': 'two words', 'z': 'a..b'}").paths == {"torch.optim.AdamW"}


@pytest.mark.parametrize("code", ["x = globals()[y]", "x = vars(y)", "x = y.__dict__", "exec(y)"])
def test_code_that_reaches_what_it_does_not_name(code: str) -> None:
    assert read(code).is_wide
