"""A job as a process of this machine, without Airflow: the job `generate` needs no other environment than this one."""

from __future__ import annotations

import sys

import pytest

from include.artifacts.store import Store
from include.errors import ConfigurationError, ExitCode
from include.job_plan import JobFailedError, JobPlan
from include.local_job import run_job
from include.platforms import Platform, load_platform


@pytest.fixture
def platform(store: Store) -> Platform:
    return load_platform("laptop").model_copy(update={"store": store.root, "python": {"jobs": sys.executable}})


def plan(store: Store) -> JobPlan:
    return JobPlan.prepare("generate", config={"variant": "train", "rows": 10, "seed": 1}, inputs={}, store=store)


def test_a_job_returns_what_it_made(store: Store, platform: Platform) -> None:
    assert run_job(plan(store), platform).name == plan(store).name


def test_a_job_that_fails_says_why_with_its_own_exit_code(store: Store, platform: Platform) -> None:
    changed = plan(store)
    output = changed.spec.output.model_copy(update={"code": "0" * 64})
    changed = JobPlan(changed.spec.model_copy(update={"output": output}), store)
    with pytest.raises(JobFailedError, match="the code of job generate changed") as failure:
        run_job(changed, platform)
    assert failure.value.exit_code == ExitCode.TRY_AGAIN


def test_a_platform_without_an_interpreter_is_named(store: Store, platform: Platform) -> None:
    with pytest.raises(ConfigurationError, match="platform laptop has no python for the environment 'jobs'"):
        run_job(plan(store), platform.model_copy(update={"python": {}}))
