"""### Delete artifacts that nothing needs

`look → plan → look again → sweep`

What the registry, the live releases, a rollback, an unfinished run or a recent report needs is never deleted. Of the
rest, what was not used for long is, and what exceeds the limits. The artifact of the task `plan` lists what to delete,
and why. It is deleted only with the Param `delete`, after every need was checked again.
"""

from __future__ import annotations

from airflow.sdk import Param, dag, get_current_context, task

from operators import default_args, deletes_by_default, plan_section, retention_schedule, stage, sweep_section


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
            description_md="Off: only list what to delete. On: delete it.",
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
