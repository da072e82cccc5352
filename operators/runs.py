"""How a run of `customize` comes to be: from an announced data set, from the form, or from cron."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from airflow.sdk import BaseOperator, CronTriggerTimetable
from airflow.sdk.exceptions import AirflowFailException, DagRunTriggerException

from include.artifacts.naming import digest
from include.errors import AnemoneError, ConfigurationError
from include.platforms import current_platform
from include.recipes import recipe_names, resolve
from include.sizing import require_gpus
from operators.sentences import keep_sentence

if TYPE_CHECKING:
    from airflow.sdk import Context


def announced_runs(context: Context) -> list[dict[str, Any]]:
    """One run of `customize` for each announced data set, named so that there can be only one.

    Airflow may deliver several events in one run, or one event twice; the run id, made of the data set's digest and
    the recipe, is unique in its database.

    Returns:
        {"run_id", "conf"} of each run.
    """
    recipe = current_platform().arrivals.recipe
    runs = {}
    for events in context["triggering_asset_events"].values():
        for event in events:
            payload = event.extra["payload"]
            run_id = f"arrival__{payload['digest'][:16]}__{digest(recipe)[:8]}"
            conf = {"data": payload["source"], "recipe": recipe, "digest": payload["digest"]}
            runs[run_id] = {"run_id": run_id, "conf": conf}
    return list(runs.values())


class StartRunOperator(BaseOperator):
    """Start a run of another DAG; the task is skipped where that run exists already.

    This is what TriggerDagRunOperator does, whose module costs every parse half a CPU-second of imports. And nothing
    here is a template: Airflow renders what a mapped task is given, and a file's name comes this way.

    Args:
        starts: id of the other DAG.
        run_id, conf: of its run.
    """

    template_fields: Sequence[str] = ()

    def __init__(self, *, starts: str, run_id: str, conf: Mapping[str, Any], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.starts = starts
        self.run_id = run_id
        self.conf = conf

    def execute(self, context: Context) -> NoReturn:
        raise DagRunTriggerException(
            trigger_dag_id=self.starts,
            dag_run_id=self.run_id,
            conf=dict(self.conf),
            reset_dag_run=False,
            skip_when_already_exists=True,
            wait_for_completion=False,
            allowed_states=[],
            failed_states=[],
            poke_interval=60,
            deferrable=False,
        )


@keep_sentence
def resolved_recipe(context: Context) -> dict[str, Any]:
    """The run's recipe with the form's overrides, one section a stage (see `include.recipes.resolve`).

    `ingest` gets the run's data set as its source: the Param `data`, or the newest file of the arrivals folder.
    """
    params = context["params"]
    try:
        sections = resolve(params["recipe"], params["overrides"])
        if (cluster := current_platform().cluster) is not None:
            require_gpus(sections, cluster)
        sections["ingest"]["config"]["source"] = params["data"] or _newest_arrival()
        sections["ingest"]["config"]["announced"] = (context["dag_run"].conf or {}).get("digest")
    except AnemoneError as error:
        raise AirflowFailException(str(error)) from None
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
