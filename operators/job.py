"""The base of the operators that run a job, wherever it runs: plan, reuse, announce what was made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from airflow.sdk import BaseOperator

from include.announcements import Announcements
from include.artifacts.store import Store
from include.artifacts.uses import Run
from include.events import format_event
from include.job_plan import JobPlan
from include.platforms import Platform, current_platform
from include.recipes.resolved import Section
from include.release.candidates import AnnouncedCandidate
from operators.links import MadeArtifactLink
from operators.literals import LiteralFields
from operators.store import platform_store, store_of

if TYPE_CHECKING:
    from airflow.sdk import BaseOperatorLink, Context

    from include.artifacts.manifest import Manifest


class JobOperator(LiteralFields, BaseOperator):
    """Run one job, or reuse what it made before; the task returns the artifact's URI.

    A subclass runs the job in `execute`, by `plan`, `reused` and `announce`; a platform names it by its key `operator`.
    An event of each outlet asset carries {"artifact": URI, "metrics": the manifest's}.

    Args:
        section: a section of a resolved recipe (`include.recipes.resolved.Section`) as JSON; None where the recipe
            lacks the stage: the task then returns None. Texts in it are no templates (`operators.literals`).
        inputs: artifact URI by input name; an input that is None is left out.
        links: on the task's page in the web UI.
    """

    template_fields: Sequence[str] = ("section", "inputs")
    # Not KubernetesPodOperator's, which a subclass has, too: a URI that ends in .json is no file of templates.
    template_ext: Sequence[str] = ()
    literal_fields: ClassVar[frozenset[str]] = frozenset({"section"})
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

    @property
    def stage_section(self) -> Section:
        """The argument `section` as its type.

        Raises:
            ConfigurationError: it is no section of a resolved recipe.
        """
        return Section.of(self.section)

    def plan(self, context: Context, *, image: str | None = None) -> JobPlan:
        """Validate the task's job and name its output. Raises what `JobPlan.prepare` does."""
        stage = self.stage_section
        return JobPlan.prepare(
            stage.job,
            config=stage.config,
            inputs=self.inputs,
            store=self.store,
            refresh=context["run_id"] if self.task_id in context["params"].get("refresh", ()) else "",
            run=Run(dag_id=self.dag_id, run_id=context["run_id"]),
            image=image,
            store_of=store_of,
        )

    def reused(self, plan: JobPlan) -> Manifest | None:
        """Return what the job made before, if it did; the log then says so, and how to make it again."""
        manifest = plan.committed()
        if manifest is not None:
            self.log.info(
                "reused artifact=%s (made before from the same code, configuration and data; "
                "the Param refresh=[%r] makes it again)",
                plan.uri,
                self.task_id,
            )
        return manifest

    def announce(self, context: Context, plan: JobPlan, manifest: Manifest) -> str:
        """Log what was made, and put it into the outlets' events. Return its URI, for the task to return.

        A candidate is written down before its event is sent: see `include.announcements`.
        """
        self.log.info(format_event("artifact", {"uri": plan.uri, "files": len(manifest.files), **manifest.metrics}))
        for outlet in self.outlets:
            if getattr(outlet, "name", None) == AnnouncedCandidate.asset:
                candidate = AnnouncedCandidate(artifact=plan.uri, source_run=context["run_id"])
                Announcements(self.store, AnnouncedCandidate).add(candidate)
            context["outlet_events"][outlet].extra = {"artifact": plan.uri, "metrics": dict(manifest.metrics)}
        return plan.uri
