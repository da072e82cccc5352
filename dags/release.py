"""### From a candidate to the live release

`plan → candidate → recipe → engine → canary → promote`; however the run ends, `report` shows why on one page.

Starts when `customize` has registered a candidate (DAG `candidates`), or from this form. A candidate brings its recipe
along, with what its run had overridden; the form's overrides come on top. The engine is built and tested
against the model, then the canary controller shifts all of the traffic to it, step by step, and rolls it back by itself
where it is worse than the champion. MLflow's alias `champion` moves after the traffic did.
"""

from __future__ import annotations

from airflow.sdk import Param, dag, get_current_context, task

from operators import (
    LONG_RETRIES,
    CanaryRolloutOperator,
    default_args,
    model_param,
    planned_release,
    promotion,
    promotion_callbacks,
    release_inputs,
    release_recipe,
    report_at_the_end,
    stage,
)


@dag(
    schedule=None,
    catchup=False,
    # The canary controller leads one release of a model at a time; other runs build their engines meanwhile.
    max_active_runs=16,
    tags=["anemone"],
    default_args=default_args(),
    doc_md=__doc__,
    params={
        "model": model_param(
            "finetune",
            title="Model",
            description_md="The registered model. Its version is released by the recipe that made it, overrides "
            "included.",
            section="Release",
        ),
        "version": Param(
            None,
            type=["null", "string"],
            pattern="^[0-9]{0,9}$",
            title="Version",
            description_md="Of the model in MLflow. Empty: the newest candidate.",
            section="Release",
        ),
        "drill": Param(
            "none",
            type="string",
            enum=["none", "slow", "failing", "garbled"],
            title="Rehearse a bad release",
            description_md="The engine passes its tests and misbehaves once it gets traffic as a canary, until it "
            "is rolled back.",
            section="Rehearsal",
        ),
        "overrides": Param(
            {},
            type="object",
            title="Overrides",
            description_md='Keys of that recipe by dotted path, as in `{"canary.steps": [0.1, 0.5]}`: of its sections '
            "`engine` and `canary`.",
            section="Changes to the recipe",
        ),
        "refresh": Param(
            [],
            type="array",
            items={"type": "string", "enum": ["engine"]},
            examples=["engine"],
            title="Run again",
            description_md="Stages that run although the same work was done before.",
            section="Changes to the recipe",
        ),
    },
)
def release():
    @task(multiple_outputs=True)
    def plan() -> dict:
        return planned_release(get_current_context())

    @task(multiple_outputs=True)
    def inputs(candidate: str) -> dict:
        return release_inputs(candidate)

    # Not a part of `inputs`: a run that began before an upgrade may have that behind it.
    @task(multiple_outputs=True)
    def recipe(candidate: str) -> dict:
        return release_recipe(get_current_context(), candidate)

    planned = plan()
    candidate = stage("candidate", planned["candidate"], inputs={"registration": planned["registration"]})
    found = inputs(candidate.output)
    how = recipe(candidate.output)
    engine = stage(
        "engine",
        how["engine"],
        inputs={"merged": found["merged"], "data": found["curated"], "evaluation": found["evaluation"]},
    )
    canary = CanaryRolloutOperator(
        task_id="canary",
        kind="release",
        target=found["model"],
        version=found["version"],
        engine=engine.output,
        expected_champion=found["champion_version"],
        policy=how["canary"],
        drill="{{ params.drill }}",
        **LONG_RETRIES,
    )
    promoted = stage("promote", promotion(found["model"]), **LONG_RETRIES, **promotion_callbacks())
    canary >> promoted
    report_at_the_end({"candidate": candidate, "engine": engine, "promoted": promoted}, plan=how, rollout=canary)


release()
