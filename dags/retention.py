"""### What of the store may go

`look → plan → look again → sweep`

What the registry, the live releases, their way back, a run that goes on or a young report needs never goes; of the rest
goes what was not used for long, and what is too much. The plan, an artifact of the task `plan`, tells what would go and
why; only with the Param `delete` does it go, after every need was looked at again.
"""

from __future__ import annotations

from airflow.sdk import Param, dag, get_current_context, task

from operators import default_args, deletes_by_itself, planned_retention, retention_schedule, stage, wanted_retention


@dag(
    schedule=retention_schedule(),
    catchup=False,
    max_active_runs=1,
    tags=["anemone"],
    default_args=default_args(),
    doc_md=__doc__,
    params={
        "delete": Param(
            deletes_by_default(),
            type="boolean",
            title="Delete",
            description_md="Off: only tell what would go. On: let it go.",
            section="Retention",
        ),
    },
)
def retention():
    @task
    def look() -> dict:
        return plan_section(get_current_context())

    @task
    def look_again() -> dict:
        return sweep_section(get_current_context())

    plan = stage("plan", look())
    again = look_again()
    plan >> again
    stage("sweep", again, inputs={"plan": plan.output})


retention()
