"""What `include.code_identity` reads from the lock file is what is installed: here, where that can be asked."""

from __future__ import annotations

import sys
from importlib.metadata import packages_distributions

import pytest
from packaging.utils import canonicalize_name

from include.code_identity.libraries import every_version, versions
from include.code_identity.reach import reach
from include.home import PROJECT
from include.specs import job_names, job_place, spec_class
from tests.jobs.distributions import required

LOCK = PROJECT / "requirements" / "jobs.txt"
LOCKED = {pin.partition("==")[0] for pin in every_version(LOCK)}


@pytest.mark.parametrize("job", [job for job in job_names() if spec_class(job).environment == "jobs"])
def test_a_jobs_libraries_are_those_that_its_imports_load(job: str) -> None:
    place = job_place(job)
    reached = reach(PROJECT, PROJECT.joinpath("jobs", *place), ".".join(("include", "specs", *place)))
    installed = packages_distributions()
    imported = {
        canonicalize_name(distribution)
        for module in reached.libraries - sys.stdlib_module_names
        for distribution in installed[module]
    }
    counted = {pin.partition("==")[0] for pin in versions(LOCK, reached.libraries, reached.paths)}
    assert required(imported) & LOCKED <= counted
