"""A job as a process of this machine: its command, its environment, and how it ends.

Knows nothing of Airflow. `operators.local` starts the same command under a supervisor of its own.
"""

from __future__ import annotations

import os
import subprocess

from include.artifacts.manifest import Manifest
from include.errors import ConfigurationError
from include.home import PROJECT
from include.job_environment import ERROR_PREFIX
from include.job_plan import JobPlan
from include.platforms import Platform
from include.specs import job_module

_PASSED_ON = {
    *("HOME", "LANG", "LANGUAGE", "LD_LIBRARY_PATH", "LOGNAME", "PATH", "PYTHONUNBUFFERED", "TMPDIR", "TZ", "USER"),
    *("ANEMONE_HOME", "ANEMONE_PLATFORM", "ANEMONE_PORT", "ANEMONE_SCRATCH"),
    *("AWS_CA_BUNDLE", "AWS_CONFIG_FILE", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"),
    *("AWS_PROFILE", "AWS_ROLE_ARN", "AWS_SHARED_CREDENTIALS_FILE", "AWS_WEB_IDENTITY_TOKEN_FILE"),
    *("OMP_NUM_THREADS", "OMP_WAIT_POLICY"),
    *("CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES", "SSL_CERT_DIR", "SSL_CERT_FILE"),
}
"""Environment variables that every job needs; the platform's YAML names the others, credentials included."""


def job_environment(platform: Platform) -> dict[str, str]:
    """Return a job's environment: little of this process's, which holds secrets of all kinds, and the platform's."""
    passed_on = {key: value for key, value in os.environ.items() if key in _PASSED_ON or key.startswith("LC_")}
    return {**passed_on, **platform.environment}


def job_command(plan: JobPlan, platform: Platform) -> list[str]:
    """Return the command that does the job, after its spec was written.

    Raises:
        ConfigurationError: the platform has no interpreter for the job's environment.
    """
    python = platform.python.get(plan.spec.environment)
    if python is None:
        raise ConfigurationError(
            f"platform {platform.name} has no python for the environment {plan.spec.environment!r}"
        )
    return [python, "-m", job_module(plan.spec.job), "--spec", plan.write_spec()]


def run_job(plan: JobPlan, platform: Platform) -> Manifest:
    """Run the job to its end in a process of its own, and return what it made.

    Raises:
        JobFailedError: it did not succeed.
    """
    ended = subprocess.run(
        job_command(plan, platform), cwd=PROJECT, env=job_environment(platform), capture_output=True, text=True
    )
    last_line = (ended.stderr.strip().splitlines() or [""])[-1]
    code = ended.returncode if ended.returncode >= 0 else 128 - ended.returncode
    return plan.conclude(code, last_line.removeprefix(ERROR_PREFIX) or None)
