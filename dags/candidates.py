"""Each candidate that `customize` registers starts one run of `release`, however its events are delivered."""

from __future__ import annotations

from airflow.sdk import dag, get_current_context, task

from operators import CANDIDATE, StartRunOperator, announced_releases, default_args


@dag(
    schedule=[CANDIDATE],
    catchup=False,
    tags=["anemone"],
    default_args=default_args(),
    doc_md=__doc__,
)
def candidates():
    @task
    def announced() -> list[dict]:
        return announced_releases(get_current_context())

    StartRunOperator.partial(task_id="start_release", starts="release").expand_kwargs(announced())


candidates()
