"""Jobs as processes on the machine where Airflow's worker runs."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

from include.errors import ConfigurationError, TryAgainError
from include.home import PROJECT
from include.job_plan import JobPlan
from include.specs import job_module
from operators.errors import as_airflow_errors, keep_sentence
from operators.job import JobOperator

if TYPE_CHECKING:
    from airflow.sdk import Context

_ERROR = "error: "

_PASSED_ON = {
    *("HOME", "LANG", "LANGUAGE", "LD_LIBRARY_PATH", "LOGNAME", "PATH", "PYTHONUNBUFFERED", "TMPDIR", "TZ", "USER"),
    *("ANEMONE_HOME", "ANEMONE_PLATFORM", "ANEMONE_PORT", "ANEMONE_SCRATCH"),
    *("AWS_CA_BUNDLE", "AWS_CONFIG_FILE", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"),
    *("AWS_PROFILE", "AWS_ROLE_ARN", "AWS_SHARED_CREDENTIALS_FILE", "AWS_WEB_IDENTITY_TOKEN_FILE"),
    *("CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES", "SSL_CERT_DIR", "SSL_CERT_FILE"),
}
"""Environment variables that every job needs; what else one needs, credentials too, its platform's YAML names."""


class LocalJobOperator(JobOperator):
    """Run one job as a process, or reuse what it made before; returns the artifact's URI.

    The process tree dies within the platform's grace after this task ends, also when the task is SIGKILLed.
    """

    ui_color = "#e6edf7"

    _process: subprocess.Popen[str] | None = None

    @keep_sentence
    def execute(self, context: Context) -> str | None:
        if self.section is None:
            self.log.info("this recipe has no stage %s", self.task_id)
            return None
        with as_airflow_errors():
            try:
                plan = self.plan(context)
                manifest = self.reused(plan) or plan.conclude(*self._run(plan))
            except OSError as error:
                message = (
                    f"this machine could not start the job ({error}): see to it; the store is {self.platform.store}"
                )
                raise TryAgainError(message) from None
        return self.announce(context, plan, manifest)

    def on_kill(self) -> None:
        """Ask the supervisor to end the process tree; it goes on doing so after this process is gone."""
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()

    def _run(self, plan: JobPlan) -> tuple[int, str | None]:
        """Exit code (128 + n for signal n) and the job's last `error: …` sentence, if any."""
        if getattr(plan.spec.config, "nodes", 1) > 1:
            raise ConfigurationError(
                f"{plan.spec.job}.nodes is {plan.spec.config.nodes}, and this platform is one machine: set it to 1, or "
                "ANEMONE_PLATFORM to a cluster"
            )
        environment = plan.spec.environment
        python = self.platform.python.get(environment)
        if python is None:
            raise ConfigurationError(f"platform {self.platform.name} has no python for the environment {environment!r}")
        command = [python, "-m", job_module(plan.spec.job), "--spec", plan.write_spec()]
        grace = str(self.platform.grace_seconds)
        supervisor = [sys.executable, "-m", "operators.local.supervisor", "--grace", grace, "--"]
        sentence = None
        self._process = subprocess.Popen(
            [*supervisor, *command],
            cwd=PROJECT,
            env={**_passed_on(), **self.platform.environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            errors="replace",
            # Out of the reach of the signals that end the task's own process group: it needs its grace to save.
            start_new_session=True,
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            for line in self._process.stdout:
                line = line.rstrip()
                if line.startswith(_ERROR):
                    sentence = line.removeprefix(_ERROR)
                elif line:
                    self.log.info("%s", line)
            code = self._process.wait()
        finally:
            # A time-out leaves the loop early; the next try must find nothing of this one.
            self.on_kill()
            self._process.stdout.close()
            self._process.wait()
        return (code if code >= 0 else 128 - code), sentence


def _passed_on() -> dict[str, str]:
    """What a job gets of this process's environment, in which secrets of all kinds lie; the platform adds its own."""
    return {key: value for key, value in os.environ.items() if key in _PASSED_ON or key.startswith("LC_")}
