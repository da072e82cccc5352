"""Params of forms whose choices come from the recipes; one that is broken costs itself, and no form."""

from __future__ import annotations

import logging
from functools import cache
from typing import Any

from airflow.sdk import Param

from include.errors import ConfigurationError
from include.platforms import current_platform
from include.recipes import recipe_model, recipe_names, recipe_problem

_log = logging.getLogger(__name__)


def recipe_choices(stage: str) -> list[str]:
    """Return the recipes that name a stage, for the form of a DAG that runs it; the platform's own first."""
    default = current_platform().arrivals.recipe
    return sorted(recipe_names(stage), key=lambda name: name != default)


def model_choices(stage: str = "finetune") -> list[str]:
    """Return the models of the recipes that name a stage; that of the platform's own first."""
    named = map(recipe_model, recipe_choices(stage))
    models = list(dict.fromkeys(model for model in named if model is not None))
    return [*models[:1], *sorted(models[1:])]


def recipe_param(stage: str, *, description_md: str, **schema: Any) -> Param:
    """Return a form's Param `recipe`: one of the recipes that name a stage, the platform's own where it is one.

    The description names those that cannot be used, and why. They stay among the choices: what an arrival or a cron
    starts with one ends in its first task, with the reason, where Airflow would otherwise refuse the run.

    Args:
        stage: as for `recipe_choices`.
        description_md: what it says where no recipe is broken.
        schema: the Param's other keys, such as `title`, `section`.

    Raises:
        ConfigurationError: no recipe names the stage.
    """
    names = recipe_choices(stage)
    if not names:
        raise ConfigurationError(f"no recipe names the stage {stage!r}: add one to include/recipes/")
    # The platform's own is missing from the names where there is no such file.
    wanted = [*names, *({current_platform().arrivals.recipe} - set(recipe_names()))]
    broken = {name: problem for name in wanted if (problem := _problem(name)) is not None}
    if broken:
        description_md = f"{description_md} {_listed('Broken', broken)}"
        schema["values_display"] = {name: f"{name} (broken)" if name in broken else name for name in names}
    return Param(names[0], type="string", enum=names, description_md=description_md, **schema)


def model_param(stage: str, *, description_md: str, **schema: Any) -> Param:
    """Return a form's Param `model`, with the models of the recipes that name a stage as suggestions.

    A recipe that is broken otherwise still gives its model, since that may be live. The description names those that do
    not; any other model can be typed, too.

    Args:
        stage, description_md, schema: as for `recipe_param`.
    """
    models = model_choices(stage)
    if unknown := [name for name in recipe_choices(stage) if recipe_model(name) is None]:
        problems = {name: _problem(name) or "its file shows no model" for name in unknown}
        description_md = f"{description_md} {_listed('Without the models of', problems)}"
    first = next(iter(models), None)
    return Param(first, type="string", minLength=1, examples=models, description_md=description_md, **schema)


@cache
def _problem(name: str) -> str | None:
    """Return why a recipe cannot be used, if so, after one line in the log."""
    problem = recipe_problem(name)
    if problem is not None:
        _log.warning("the forms' recipe %s cannot be used: %s", name, problem)
    return problem


def _listed(what: str, problems: dict[str, str]) -> str:
    """Return the recipes with their problems, as Markdown that shows the text as it is."""
    found = ((name, " ".join(problem.replace("`", "'").split())) for name, problem in problems.items())
    return f"**{what}:** " + "; ".join(f"`{name}` (`{problem}`)" for name, problem in found)
