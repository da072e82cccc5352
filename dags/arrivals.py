"""Each data set that arrives starts one run of `customize`, however often it is announced."""

from __future__ import annotations

from airflow.sdk import dag, get_current_context, task

from operators.assets import arrived_datasets
from operators.runs import announced_runs, start_run


@dag(
    schedule=[arrived_datasets()],
    catchup=False,
    tags=["anemone"],
    default_args={"owner": "anemone", "retries": 2},
    doc_md=__doc__,
)
def arrivals():
    @task
    def announced() -> list[dict]:
        return announced_runs(get_current_context())

    @task
    def start_customize(run_id: str, conf: dict) -> None:
        start_run("customize", run_id=run_id, conf=conf)

    start_customize.expand_kwargs(announced())


arrivals()
