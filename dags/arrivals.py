"""Each data set that arrives starts one run of `customize`, however often it is announced.

What has arrived is written down in the store. A run of this DAG starts every run of `customize` that is missing: when
an event tells that something came, every five minutes, and whenever a person starts it.
"""

from __future__ import annotations

from airflow.sdk import dag, get_current_context, task

from operators import FIRST_IN_QUEUE, arrived_datasets, default_args, start_customizations, when_announced

ARRIVED = arrived_datasets()


@dag(
    schedule=when_announced(ARRIVED),
    catchup=False,
    tags=["anemone"],
    default_args=default_args(),
    doc_md=__doc__,
)
def arrivals():
    @task(inlets=[ARRIVED], **FIRST_IN_QUEUE)
    def start_customize() -> list[str]:
        return start_customizations(get_current_context())

    start_customize()


arrivals()
