"""Each data set that arrives starts one run of `customize`, however often it is announced."""

from __future__ import annotations

from airflow.providers.standard.operators.trigger_dagrun import TriggerDagRunOperator
from airflow.sdk import dag, get_current_context, task

from operators.assets import arrived_datasets
from operators.runs import announced_runs


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

    TriggerDagRunOperator.partial(
        task_id="start_customize",
        trigger_dag_id="customize",
        skip_when_already_exists=True,
    ).expand_kwargs(announced())


arrivals()
