"""### From a data set to a gated, registered candidate

`ingest → curate → check → `**data-quality gate**` → fine-tune → merge → evaluate → `**evaluation gate**` → register`;
however the run ends, `report` shows why on one page.

Starts from this form, from cron, or when a data set arrives (DAG `arrivals`). Every stage is a cached job: a run that
needs what was made before reuses it, and its log says so.
"""

from __future__ import annotations

from airflow.sdk import Param, dag, get_current_context, task

from operators import (
    CANDIDATE,
    GateSensor,
    customize_schedule,
    default_args,
    planned_customization,
    recipe_param,
    report_at_the_end,
    stage,
)

STAGES = ["ingest", "base", "heldout", "curate", "check", "finetune", "merge", "evaluate"]


@dag(
    schedule=customize_schedule(),
    catchup=False,
    max_active_runs=16,
    tags=["anemone"],
    default_args=default_args(),
    doc_md=__doc__,
    params={
        "data": Param(
            None,
            type=["null", "string"],
            title="Data set",
            description_md="A JSONL file or a folder of shards: `{prompt, completion}`, `{input, output}` or "
            "`{messages}` a line. Empty: the newest file in the arrivals folder. Where the recipe brings no held-out "
            "rows, a tenth is held out: bring 450 rows for `own/0.8M_lora_cpu`, 1,250 for `qwen2_5/0.5B_lora_cpu`, and "
            "2,250 to compare with a champion.",
            section="Data and recipe",
        ),
        "recipe": recipe_param(
            "finetune",
            title="Recipe",
            description_md="Model, method, hyper-parameters and gates: a file of `include/recipes/`.",
            section="Data and recipe",
        ),
        "overrides": Param(
            {},
            type="object",
            title="Overrides",
            description_md='Keys of the recipe by dotted path, as in `{"finetune.steps": 200}`.',
            section="Changes to the recipe",
        ),
        "refresh": Param(
            [],
            type="array",
            items={"type": "string", "enum": STAGES},
            examples=STAGES,
            title="Run again",
            description_md="Stages that run although the same work was done before.",
            section="Changes to the recipe",
        ),
    },
)
def customize():
    @task(multiple_outputs=True)
    def recipe() -> dict:
        return planned_customization(get_current_context())

    plan = recipe()
    base = stage("base", plan["base"])
    heldout = stage("heldout", plan["heldout"])
    champion = stage("champion", plan["champion"])
    data = stage("ingest", plan["ingest"])
    curated = stage("curate", plan["curate"], inputs={"data": data.output, "heldout": heldout.output})
    checked = stage("check", plan["check"], inputs={"curated": curated.output, "base": base.output})
    data_quality = GateSensor(task_id="data_quality_gate", gate="data_quality", artifact=checked.output)
    tuned = stage("finetune", plan["finetune"], inputs={"base": base.output, "data": curated.output})
    merged = stage("merge", plan["merge"], inputs={"base": base.output, "tuned": tuned.output, "data": curated.output})
    evaluated = stage(
        "evaluate",
        plan["evaluate"],
        inputs={
            "base": base.output,
            "tuned": merged.output,
            "data": curated.output,
            "champion": champion.output,
        },
    )
    evaluation = GateSensor(
        task_id="evaluation_gate", gate="evaluation", artifact=evaluated.output, gates=plan["gates"]
    )
    registered = stage(
        "register",
        plan["register"],
        inputs={
            "data": data.output,
            "curated": curated.output,
            "checked": checked.output,
            "base": base.output,
            "tuned": tuned.output,
            "merged": merged.output,
            "evaluation": evaluated.output,
            "champion": champion.output,
        },
        outlets=[CANDIDATE],
    )
    data_quality >> tuned
    evaluation >> registered
    report_at_the_end(
        {
            "data": data,
            "heldout": heldout,
            "base": base,
            "champion": champion,
            "curated": curated,
            "checked": checked,
            "tuned": tuned,
            "merged": merged,
            "evaluation": evaluated,
            "registered": registered,
        },
        plan=plan,
    )


customize()
