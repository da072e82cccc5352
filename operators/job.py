"""What every task that runs a job does around it, wherever the job runs: plan, reuse, tell Airflow how it ended."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperator

from include.artifacts.store import Store
from include.artifacts.uses import Run
from include.events import format_event
from include.job_plan import JobPlan
from include.platforms import Platform, current_platform
from operators.links import MadeArtifactLink
from operators.store import platform_store, store_of

if TYPE_CHECKING:
    from airflow.sdk import BaseOperatorLink, Context

    from include.artifacts.manifest import Manifest


class JobOperator(BaseOperator):
    """A task that runs one job, or reuses what it made before, and returns the artifact's URI.

    An event of each outlet asset carries {"artifact": URI, "metrics": the manifest's}.

    Args:
        section: a section of a resolved recipe: {"job": the verb as in `python -m jobs.<job>`, "config": its
            configuration, "size": the recipe's choice of a size of pods, if it has one}; None where the recipe has no
            such stage, and the task then returns None.
        inputs: artifact URI by input name; an input that is None is left out.
        links: what the task's page in the web UI leads to.
    """

    template_fields: Sequence[str] = ("section", "inputs")
    template_fields_renderers = {"section": "json", "inputs": "json"}

    def __init__(
        self,
        *,
        section: Mapping[str, Any] | None,
        inputs: Mapping[str, str | None] | None = None,
        links: Sequence[BaseOperatorLink] = (MadeArtifactLink(),),
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.operator_extra_links = tuple(links)
        self.section = section
        self.inputs = inputs if inputs is not None else {}

    @classmethod
    def platform_arguments(cls, platform: Platform, task_id: str) -> dict[str, Any]:
        """Return the operator's arguments that follow from the platform and the task; by default there are none.

        Raises:
            ConfigurationError: the platform lacks what this operator needs.
        """
        return {}

    @cached_property
    def platform(self) -> Platform:
        return current_platform()

    @cached_property
    def store(self) -> Store:
        return platform_store(self.platform)

    def plan(self, context: Context, *, image: str | None = None) -> JobPlan:
        """The task's job, validated and named; see `JobPlan.prepare` for what it raises."""
        assert self.section is not None
        return JobPlan.prepare(
            self.section["job"],
            config=self.section["config"],
            inputs=self.inputs,
            store=self.store,
            refresh=context["run_id"] if self.task_id in context["params"].get("refresh", ()) else "",
            run=Run(dag_id=self.dag_id, run_id=context["run_id"]),
            image=image,
            store_of=store_of,
        )

    def reused(self, plan: JobPlan) -> Manifest | None:
        """What the job made before, where it did; the log says so, and how to have it made anew."""
        manifest = plan.committed()
        if manifest is not None:
            self.log.info(
                "reused artifact=%s (made before from the same code, configuration and data; "
                "the Param refresh=[%r] makes it anew)",
                plan.uri,
                self.task_id,
            )
        return manifest

    def announce(self, context: Context, plan: JobPlan, manifest: Manifest) -> str:
        """Log what was made and tell the task's outlets; returns its URI, which is what the task returns."""
        self.log.info(format_event("artifact", {"uri": plan.uri, "files": len(manifest.files), **manifest.metrics}))
        for outlet in self.outlets:
            context["outlet_events"][outlet].extra = {"artifact": plan.uri, "metrics": manifest.metrics}
        return plan.uri
