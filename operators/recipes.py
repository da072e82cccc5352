"""The form of `customize`: which recipes there are, and what a run makes of the one that was chosen."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow.sdk import CronTriggerTimetable

from include.errors import ConfigurationError
from include.platforms import current_platform
from include.recipes import recipe_names, resolve
from include.sizing import require_gpus
from operators.errors import record_failure

if TYPE_CHECKING:
    from airflow.sdk import Context


@record_failure
def resolved_recipe(context: Context) -> dict[str, Any]:
    """The run's recipe with the form's overrides, one section a stage (see `include.recipes.resolve`).

    `ingest` gets the run's data set as its source: the Param `data`, or the newest file of the arrivals folder.
    """
    params = context["params"]
    sections = resolve(params["recipe"], params["overrides"])
    if (cluster := current_platform().cluster) is not None:
        require_gpus(sections, cluster)
    sections["ingest"]["config"]["source"] = params["data"] or _newest_arrival()
    sections["ingest"]["config"]["announced"] = (context["dag_run"].conf or {}).get("digest")
    registration = {
        "model": sections["model"],
        "recipe": sections["name"],
        "run_id": context["run_id"],
        "gate": sections["gates"]["evaluation"],
    }
    sections["register"] = {"job": "register", "config": registration}
    return sections


def recipe_choices() -> list[str]:
    """For the form: every recipe, the platform's own first."""
    default = current_platform().arrivals.recipe
    return [default, *(name for name in recipe_names() if name != default)]


def _newest_arrival() -> str:
    folder = Path(current_platform().arrivals.folder)
    found = (path for path in folder.glob("*.jsonl") if path.is_file() and not path.name.startswith("."))
    files = sorted(found, key=lambda path: path.stat().st_mtime_ns)
    if not files:
        raise ConfigurationError(f"the Param data is empty and {folder} holds no *.jsonl file: name a data set")
    return str(files[-1])


def customize_schedule() -> CronTriggerTimetable | None:
    """The platform's cron, or none."""
    cron = current_platform().cron
    return CronTriggerTimetable(cron, timezone="UTC") if cron else None
