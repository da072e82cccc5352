"""Recipes in a form: which there are, and what a run makes of the one that was chosen."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow.sdk import CronTriggerTimetable

from include.errors import ConfigurationError
from include.platforms import current_platform
from include.recipes import resolve
from include.recipes.resolved import ResolvedRecipe, Section
from include.sizing import require_gpus
from operators.errors import record_failure

if TYPE_CHECKING:
    from airflow.sdk import Context


OPTIONAL_STAGES = ("ingest", "curate", "check", "finetune", "merge", "evaluate", "champion")
"""Jobs of `customize` that a recipe need not name."""

GATES = ("data_quality", "evaluation")
"""The gates of `customize`."""


@record_failure
def resolved_recipe(context: Context, stages: Iterable[str] = ()) -> dict[str, Any]:
    """Return the run's recipe with the form's overrides, as the plan of its stages (`ResolvedRecipe.plan`).

    For the first task of any DAG with the Params `recipe` and `overrides`.

    Args:
        stages: jobs that the DAG runs whatever the recipe holds.
    """
    return _resolved(context, stages).plan()


@record_failure
def planned_customization(context: Context) -> dict[str, Any]:
    """Return the plan of a run of `customize`: its recipe, the data set that it takes, and how it registers.

    The data set is that of the Param `data`, or the newest file of the arrivals folder.
    """
    # Its release runs `engine`: what is wrong there is told now, not after hours of training.
    recipe = _resolved(context, (*OPTIONAL_STAGES, "engine"))
    source = context["params"]["data"] or _newest_arrival()
    announced = (context["dag_run"].conf or {}).get("digest")
    registration = {
        "model": recipe.model,
        "recipe": recipe.name,
        "run_id": context["run_id"],
        "gates": {gate: recipe.limits(gate) for gate in GATES},
        "resolved_recipe": recipe.model_dump(mode="json"),
    }
    return recipe.with_stages(
        ingest=recipe.section("ingest").with_config(source=source, announced=announced),
        register=Section(job="register", config=registration),
    ).plan()


def _resolved(context: Context, stages: Iterable[str]) -> ResolvedRecipe:
    params = context["params"]
    recipe = resolve(params["recipe"], params["overrides"], stages)
    if (cluster := current_platform().cluster) is not None:
        require_gpus(recipe.stages, cluster)
    return recipe


def _newest_arrival() -> str:
    folder = Path(current_platform().arrivals.folder)
    found = (path for path in folder.glob("*.jsonl") if path.is_file() and not path.name.startswith("."))
    files = sorted(found, key=lambda path: path.stat().st_mtime_ns)
    if not files:
        raise ConfigurationError(f"the Param data is empty and {folder} holds no *.jsonl file: name a data set")
    return str(files[-1])


def customize_schedule() -> CronTriggerTimetable | None:
    """Return the platform's cron, or none."""
    cron = current_platform().cron
    return CronTriggerTimetable(cron, timezone="UTC") if cron else None
