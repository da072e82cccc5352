"""A recipe after its resolution: what the DAG, the plan of a run, the candidate and the report share."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError, model_serializer

from include.errors import ConfigurationError, first_problem
from include.gates import GateLimits, find_gate
from include.model import Model
from include.release.rollouts import CanaryPolicy


class Section(Model):
    """One stage of a run.

    Attributes:
        job: the verb, as in `python -m jobs.<job>`.
        config: its configuration in plain JSON values.
        size: the recipe's choice of a size of pods on a cluster (`Cluster.sizes`); None: the platform's.
    """

    job: str
    config: dict[str, Any]
    size: str | None = None

    @classmethod
    def of(cls, document: Any) -> Section:
        """Return the section that a task was given as JSON. Raises ConfigurationError where it is none."""
        try:
            return cls.model_validate(document)
        except ValidationError as error:
            raise ConfigurationError(
                f"the task was given no stage's section ({first_problem(error, 'section')}): "
                "pass stage() a section of the resolved recipe"
            ) from None

    def with_config(self, **values: Any) -> Section:
        """Return the same stage with these keys of its configuration set."""
        return self.model_copy(update={"config": {**self.config, **values}})

    @model_serializer
    def document(self) -> dict[str, Any]:
        """Return its JSON form: {"job", "config", "size"}, the last only where the recipe chose one."""
        size = {"size": self.size} if self.size is not None else {}
        return {"job": self.job, "config": self.config, **size}


class ResolvedRecipe(Model):
    """A recipe with every stage's configuration validated and complete.

    Attributes:
        name: as `recipe_names` gives it. `model`: the registered model's name in MLflow.
        max_tokens, chat_template: what the recipe shares with its stages; the template is its text.
        stages: by name; None for `heldout` where the recipe names none.
        gates: limits by gate, of those that the recipe names; others have their defaults.
        sizes: the recipe's choices of sizes by stage, also of stages that are not resolved here.
        overrides: those that are in it already: dotted path of a key → its value.
    """

    name: str
    description: str
    model: str
    max_tokens: int
    chat_template: str
    stages: dict[str, Section | None]
    gates: GateLimits
    canary: CanaryPolicy
    sizes: dict[str, str] = {}
    overrides: dict[str, Any] = {}

    @classmethod
    def of(cls, document: Any, source: str) -> ResolvedRecipe:
        """Return the recipe that a candidate brings along as JSON.

        Args:
            source: whose recipe it is, for the message.

        Raises:
            ConfigurationError: this version of the project cannot read it.
        """
        try:
            return cls.model_validate(document)
        except ValidationError as error:
            raise ConfigurationError(
                f"the recipe of {source} cannot be read ({first_problem(error, 'recipe')}): it was written by another "
                "version; run customize with its data set again, which registers it anew and repeats nothing"
            ) from None

    def section(self, stage: str) -> Section:
        """Return a stage that the recipe has. Raises KeyError for others."""
        section = self.stages[stage]
        if section is None:
            raise KeyError(stage)
        return section

    def limits(self, gate: str) -> dict[str, Any]:
        """Return all limits of a gate: the recipe's, or the defaults. Raises ConfigurationError for an unknown gate."""
        return self.gates.get(gate) or find_gate(gate).limits().model_dump(mode="json")

    def with_stages(self, **sections: Section) -> ResolvedRecipe:
        """Return the recipe with these stages added or replaced, each in the size that the recipe chose for it."""
        sized = {
            stage: section.model_copy(update={"size": self.sizes.get(stage, section.size)})
            for stage, section in sections.items()
        }
        return self.model_copy(update={"stages": {**self.stages, **sized}})

    def plan(self) -> dict[str, Any]:
        """Return the JSON form that a DAG's first task hands to the others.

        {"name", "description", "model", "gates", "canary"} and by each stage's name its section.
        """
        shown = {"name", "description", "model", "gates", "canary", "stages"}
        document = self.model_dump(mode="json", include=shown)
        sections = document.pop("stages")
        return {**document, **sections}
