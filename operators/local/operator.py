"""Jobs as processes on the machine of Airflow's worker."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING, Any

from include.errors import ConfigurationError, TryAgainError
from include.home import PROJECT
from include.job_environment import ERROR_PREFIX
from include.job_plan import JobPlan
from include.local_job import job_command, job_environment
from include.platforms import Platform
from operators.errors import record_failure
from operators.job import JobOperator

if TYPE_CHECKING:
    from airflow.sdk import Context


class LocalJobOperator(JobOperator):
    """Run one job as a process, or reuse what it made before; the task returns the artifact's URI.

    The process tree ends within the platform's grace period after this task, also when the task is SIGKILLed.
    """

    ui_color = "#e6edf7"

    _process: subprocess.Popen[str] | None = None

    @classmethod
    def platform_arguments(cls, platform: Platform, task_id: str) -> dict[str, Any]:
        """Return no arguments.

        Raises:
            ConfigurationError: the platform has a cluster, which this operator would leave idle.
        """
        if platform.cluster is not None:
            raise ConfigurationError(
                f"the platform {platform.name} has a section cluster, and its operator {cls.__name__} starts processes "
                "on Airflow's own machine: take the section out, or write operator: operators.DistributedJobOperator"
            )
        return {}

    @record_failure
    def execute(self, context: Context) -> str | None:
        if self.section is None:
            self.log.info("this recipe has no stage %s", self.task_id)
            return None
        try:
            plan = self.plan(context)
            manifest = self.reused(plan) or plan.conclude(*self._run(plan))
        except OSError as error:
            raise TryAgainError(
                f"this machine could not start the job ({error}): check it, and the store {self.platform.store}"
            ) from None
        return self.announce(context, plan, manifest)

    def on_kill(self) -> None:
        """Ask the supervisor to end the process tree, which it does also after this process is gone."""
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()

    def _run(self, plan: JobPlan) -> tuple[int, str | None]:
        """Run the job. Return its exit code (128 + n for signal n) and its last `error: …` message, if any."""
        if getattr(plan.spec.config, "nodes", 1) > 1:
            raise ConfigurationError(
                f"{plan.spec.job}.nodes is {plan.spec.config.nodes}, and this platform is one machine: set "
                f"{plan.spec.job}.nodes: 1, or ANEMONE_PLATFORM to a cluster"
            )
        grace = str(self.platform.grace_seconds)
        supervisor = [sys.executable, "-m", "operators.local.supervisor", "--grace", grace, "--"]
        message = None
        self._process = subprocess.Popen(
            [*supervisor, *job_command(plan, self.platform)],
            cwd=PROJECT,
            env=job_environment(self.platform),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            errors="replace",
            # Outside the task's own process group, which Airflow kills: the job needs its grace period to save.
            start_new_session=True,
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            for line in self._process.stdout:
                line = line.rstrip()
                if line.startswith(ERROR_PREFIX):
                    message = line.removeprefix(ERROR_PREFIX)
                elif line:
                    self.log.info("%s", line)
            code = self._process.wait()
        finally:
            # A time-out leaves the loop early, and nothing of this try may outlive it.
            self.on_kill()
            self._process.stdout.close()
            self._process.wait()
        return (code if code >= 0 else 128 - code), message
