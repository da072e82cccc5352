"""Each data set that arrives starts one run of `customize`, however often it is announced."""

from __future__ import annotations

from airflow.sdk import dag, get_current_context, task

from operators import StartRunOperator, announced_runs, arrived_datasets, default_args


@dag(
    schedule=[arrived_datasets()],
    catchup=False,
    tags=["anemone"],
    default_args=default_args(),
    doc_md=__doc__,
)
def arrivals():
    @task
    def announced() -> list[dict]:
        return announced_runs(get_current_context())

    StartRunOperator.partial(task_id="start_customize", starts="customize").expand_kwargs(announced())


arrivals()
