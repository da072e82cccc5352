"""What the jobs in NVIDIA's image import is in it: added by name, without dependencies, or the base's own."""

from __future__ import annotations

import re
import sys
from importlib.metadata import packages_distributions

import pytest
from packaging.utils import canonicalize_name

from include.code_identity.reach import reach
from include.home import PROJECT
from tests.include.code_identity.contract_imports import contract_imports
from tests.jobs.distributions import required

DOCKERFILE = PROJECT / "include" / "deploy" / "docker" / "nemo.Dockerfile"
JOBS = ("evaluate", "finetune", "merge")

BASE = ("nemo-automodel",)
"""What the image was made for. It brings what this needs by itself: torch, transformers' own requirements, datasets."""


@pytest.fixture(scope="module")
def added() -> set[str]:
    run = re.search(r"additions\.sh requirements/jobs\.txt((?: \\\n|[^\n])*)", DOCKERFILE.read_text())
    assert run is not None
    return set(run[1].replace("\\\n", " ").split())


def test_what_is_added_without_dependencies_has_them(added: set[str]) -> None:
    assert required(added) - required(BASE) - added == set()


@pytest.mark.parametrize("job", JOBS)
def test_what_a_job_imports_is_there(added: set[str], job: str) -> None:
    reached = reach(PROJECT, PROJECT / "jobs" / job, f"include.specs.{job}")
    every_job = {item.module.partition(".")[0] for _, item in contract_imports()}
    foreign = (reached.libraries | every_job) - {"include", "jobs"} - sys.stdlib_module_names
    assert "torch" in foreign
    distributions = packages_distributions()
    there = required(BASE) | added
    lacking = {name for name in foreign if not {canonicalize_name(one) for one in distributions[name]} & there}
    assert lacking == set()
