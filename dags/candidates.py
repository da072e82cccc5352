"""Each candidate that `customize` registers starts one run of `release`, however its events are delivered.

Candidates are written down in the store. A run of this DAG starts every run of `release` that is missing: when an event
tells of a candidate, every five minutes, and whenever a person starts it.
"""

from __future__ import annotations

from airflow.sdk import dag, get_current_context, task

from operators import CANDIDATE, FIRST_IN_QUEUE, default_args, start_releases, when_announced


@dag(
    schedule=when_announced(CANDIDATE),
    catchup=False,
    tags=["anemone"],
    default_args=default_args(),
    doc_md=__doc__,
)
def candidates():
    @task(inlets=[CANDIDATE], **FIRST_IN_QUEUE)
    def start_release() -> list[str]:
        return start_releases(get_current_context())

    start_release()


candidates()
