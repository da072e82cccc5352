"""What a job's code reaches, on projects of a few lines."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from include.code_identity.reach import Reached, reach

HELPER = """
import re
from dataclasses import dataclass

import numpy

LIMIT = 1
OTHER = 2

@dataclass(frozen=True)
class Kept:
    limit: int = LIMIT

def used():
    return Kept()

def unused():
    import pandas
    return OTHER
"""


@pytest.fixture
def reached(tmp_path: Path) -> Callable[..., Reached]:
    """Return what the job `train` reaches in a project with these files, beside its spec and its package."""

    def write(**files: str) -> Reached:
        around = {
            "include/__init__": "",
            "include/specs/train": "",
            "jobs/__init__": "",
            "jobs/train/__init__": "",
        }
        for name, text in (around | files).items():
            path = tmp_path / (name if "." in name else f"{name}.py")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return reach(tmp_path, tmp_path / "jobs" / "train", "include.specs.train")

    return write


@pytest.fixture
def counts(reached: Callable[..., Reached]) -> Callable[..., bool]:
    """Return whether another text of one file changes what is reached."""

    def differ(file: str, old: str, new: str, **files: str) -> bool:
        assert old in files[file]
        return reached(**files) != reached(**{**files, file: files[file].replace(old, new)})

    return differ


@pytest.mark.parametrize(
    "job",
    [
        "from jobs.helper import used\nused()",
        "from jobs.helper import used as mine\nmine()",
        "from jobs import helper\nhelper.used()",
        "from jobs import helper as mine\nmine.used()",
        "import jobs.helper as mine\nmine.used()",
        "from ..helper import used\nused()",
        "from .. import helper\nhelper.used()",
        "def run():\n    from jobs.helper import used\n    used()",
        "from jobs import helper\nx: 'used' = getattr(helper, 'used')",
        "from jobs.between import used\nused()",
    ],
)
def test_only_what_is_named_counts_however_it_is_imported(counts: Callable[..., bool], job: str) -> None:
    files = {"jobs/train/__main__": job, "jobs/helper": HELPER, "jobs/between": "from jobs.helper import used"}
    assert counts("jobs/helper", "return Kept()", "return None", **files)
    assert counts("jobs/helper", "LIMIT = 1", "LIMIT = 3", **files), "what that names in turn"
    if "getattr" not in job:
        assert not counts("jobs/helper", "OTHER = 2", "OTHER = 3", **files)


@pytest.mark.parametrize(
    "job",
    [
        "from jobs.helper import *",
        "import jobs.helper\njobs.helper.used()",
        "from jobs import helper\nrun(helper)",
        "from jobs import helper\ngetattr(helper, name)",
        "from jobs import helper\nhelper.made_by_getattr",
        "x = import_module('jobs.helper')",
        "x = {'_target_': 'jobs.helper.used'}",
    ],
)
def test_all_of_a_module_counts_where_the_code_does_not_say_what(counts: Callable[..., bool], job: str) -> None:
    assert counts("jobs/helper", "OTHER = 2", "OTHER = 3", **{"jobs/train/__main__": job, "jobs/helper": HELPER})


def test_a_module_of_which_its_package_takes_all_counts_whole(counts: Callable[..., bool]) -> None:
    files = {
        "jobs/train/__main__": "from jobs.pack.helper import used\nused()",
        "jobs/pack/__init__": "from jobs.pack.helper import *",
        "jobs/pack/helper": HELPER,
    }
    assert counts("jobs/pack/helper", "OTHER = 2", "OTHER = 3", **files)


def test_libraries_count_where_they_are_imported(reached: Callable[..., Reached]) -> None:
    job = "import torch.nn\nif TYPE_CHECKING:\n    import seen_by_checkers\nfrom jobs.helper import used\nused()"
    assert reached(**{"jobs/train/__main__": job, "jobs/helper": HELPER}).libraries == {
        *("torch", "numpy"),  # not pandas, which only `unused` imports
        *("re", "dataclasses"),  # Python's own, to be left out by whoever looks for their versions
    }


@pytest.mark.parametrize(
    "acts",
    [
        "register(2)",
        "os.environ['X'] = '2'",
        "if x:\n    y = 2",
        "@register\ndef f():\n    return 2",
        "@register.as_filter('2')\ndef f(): ...",
        "class A(numpy.ndarray):\n    x = 2",
        "class A(metaclass=Meta):\n    x = 2",
        "class A:\n    def __init_subclass__(cls): ...\nclass B(A):\n    x = 2",
        "_ = register(2)",
        "_ = exec('2')",
        "class A:\n    def __init__(self, x): register(x)\nclass B(A): ...\n_ = B(2)",
        "class A:\n    x = register(2)",
        "def f(x=register(2)): ...",
    ],
)
def test_what_can_act_at_an_import_counts_unnamed(counts: Callable[..., bool], acts: str) -> None:
    files = {"jobs/train/__main__": "from jobs import helper", "jobs/helper": f"import os, numpy\n{acts}\n"}
    assert counts("jobs/helper", "2" if "2" in acts else "...", "3", **files)


@pytest.mark.parametrize(
    "plain",
    [
        "x = 2",
        "x: int = 2",
        "x, y = 2, 3",
        "x = re.compile('2')",
        "x = max(2, 3)",
        "x = '2 3'.split()",
        "def f(x=2): ...",
        "@cache\ndef f():\n    return register(2)",
        "@dataclass\nclass A:\n    x: int = field(default=2)\nclass B(A):\n    y: A = A(2)",
        "class A(Model):\n    x: int = Field(2, ge=1)\n    @model_validator(mode='after')\n    def check(self): ...",
        "if TYPE_CHECKING:\n    register(2)",
    ],
)
def test_what_only_defines_does_not(counts: Callable[..., bool], plain: str) -> None:
    imports = (
        "import re\nfrom functools import cache\nfrom dataclasses import dataclass, field\n"
        "from pydantic import Field, model_validator\nfrom include.model import Model\n"
    )
    files = {"jobs/train/__main__": "from jobs import helper", "jobs/helper": f"{imports}{plain}\n"}
    assert not counts("jobs/helper", "2", "4", **files)


def test_the_packages_above_a_module_are_imported_with_it(counts: Callable[..., bool]) -> None:
    files = {
        "jobs/train/__main__": "from jobs.rooms.helper import x\nprint(x)",
        "jobs/rooms/__init__": "register(2)",
        "jobs/rooms/helper": "x = 1",
        "jobs/rooms/other": "register(2)",
    }
    assert counts("jobs/rooms/__init__", "2", "3", **files)
    assert not counts("jobs/rooms/other", "2", "3", **files)


def test_modules_that_are_imported_by_place_count(counts: Callable[..., bool]) -> None:
    files = {
        "jobs/train/__main__": "from include.gates import find_gate\nfind_gate(name)",
        "include/gates/__init__": "def find_gate(name):\n    return import_module(f'include.gates.{name}')",
        "include/gates/exam": "from include.marks import best",
        "include/marks": "best = 1",
    }
    assert counts("include/marks", "1", "2", **files)
    assert not counts("include/marks", "1", "2", **{**files, "jobs/train/__main__": "from include import gates"})


@pytest.mark.parametrize("job", ["import_module(name)", "from importlib import import_module as load\nload(name)"])
def test_a_module_of_any_name_may_be_any(reached: Callable[..., Reached], job: str) -> None:
    found = reached(**{"jobs/train/__main__": job, "jobs/far/away": "x = 1"})
    assert found.everything and "jobs.far.away" in found.code


def test_data_counts_in_the_jobs_package_and_beside_helpers_that_look_there(
    reached: Callable[..., Reached], tmp_path: Path
) -> None:
    found = reached(
        **{
            "jobs/train/__main__": "from jobs.words import read\nfrom jobs.other import x\nread(), x",
            "jobs/train/templates/page.jinja": "",
            "jobs/words/__init__": "def read():\n    return Path(__file__).with_name('words.txt').read_text()",
            "jobs/words/words.txt": "",
            "jobs/other/__init__": "x = 1",
            "jobs/other/words.txt": "",
        }
    )
    assert found.files == {tmp_path / "jobs/train/templates/page.jinja", tmp_path / "jobs/words/words.txt"}


def test_what_stores_tells_and_measures_is_not_followed(reached: Callable[..., Reached]) -> None:
    files = {
        "jobs/train/__main__": "from jobs.common.runtime import main\nfrom include.artifacts import store\nmain(store)",
        "jobs/common/runtime": "import behind",
        "include/artifacts/store": "import botocore",
    }
    found = reached(**files)
    assert set(found.code) == {"jobs.train.__main__"} and not found.libraries


def test_a_circle_of_imports_ends(reached: Callable[..., Reached]) -> None:
    found = reached(
        **{
            "jobs/train/__main__": "from jobs.a import x\nx()",
            "jobs/a": "from jobs import b\ndef x(): return b.y()",
            "jobs/b": "from jobs import a\ndef y(): return a.x()",
        }
    )
    assert {"jobs.a", "jobs.b"} <= set(found.code)


def test_a_file_that_changed_is_read_again(reached: Callable[..., Reached]) -> None:
    first = reached(**{"jobs/train/__main__": "x = 1"})
    assert reached(**{"jobs/train/__main__": "x = 2"}) != first == reached(**{"jobs/train/__main__": "x = 1"})
