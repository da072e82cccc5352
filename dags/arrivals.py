"""Each data set that arrives starts one run of `customize`, however often it is announced."""

from __future__ import annotations

from airflow.sdk import dag, get_current_context, task

from operators.arrivals.runs import announced_runs
from operators.assets import arrived_datasets
from operators.defaults import RETRIES
from operators.notifications import notified
from operators.start_run import StartRunOperator


@dag(
    schedule=[arrived_datasets()],
    catchup=False,
    tags=["anemone"],
    default_args={"owner": "anemone", **RETRIES, **notified()},
    doc_md=__doc__,
)
def arrivals():
    @task
    def announced() -> list[dict]:
        return announced_runs(get_current_context())

    StartRunOperator.partial(task_id="start_customize", starts="customize").expand_kwargs(announced())


arrivals()
