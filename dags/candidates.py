"""Each candidate that `customize` registers starts one run of `release`, however its events are delivered."""

from __future__ import annotations

from airflow.sdk import dag, get_current_context, task

from operators.assets import CANDIDATE
from operators.releases import announced_releases
from operators.runs import start_run


@dag(
    schedule=[CANDIDATE],
    catchup=False,
    tags=["anemone"],
    default_args={"owner": "anemone", "retries": 2},
    doc_md=__doc__,
)
def candidates():
    @task
    def announced() -> list[dict]:
        return announced_releases(get_current_context())

    @task
    def start_release(run_id: str, conf: dict) -> None:
        start_run("release", run_id=run_id, conf=conf)

    start_release.expand_kwargs(announced())


candidates()
