"""### From a data set to the rows that are worth training on

`base, generate → distill → `**distillation gate**; however the run ends, `report` shows why on one page.
"""

from __future__ import annotations

from airflow.sdk import Param, dag, get_current_context, task

from operators import GateSensor, default_args, recipe_param, report_at_the_end, resolved_recipe, stage

STAGES = ["base", "generate", "distill"]
"""Task ids, which the Param `refresh` names."""


@dag(
    schedule=None,
    catchup=False,
    tags=["anemone"],
    default_args=default_args(),
    doc_md=__doc__,
    params={
        "recipe": recipe_param(
            "distill",
            title="Recipe",
            description_md="Teacher, rows, the share to keep, and the gate's limits: a file of `include/recipes/`.",
            section="Recipe",
        ),
        "overrides": Param(
            {},
            type="object",
            title="Overrides",
            description_md='Keys of the recipe by dotted path, as in `{"distill.keep": 0.3}`.',
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
def distill():
    @task(multiple_outputs=True)
    def recipe() -> dict:
        # Of the stages only `distill` has a default for every key: a recipe may leave that one out.
        return resolved_recipe(get_current_context(), stages=["distill"])

    plan = recipe()
    teacher = stage("base", plan["base"])
    rows = stage("generate", plan["generate"])
    distilled = stage("distill", plan["distill"], inputs={"teacher": teacher.output, "rows": rows.output})
    GateSensor(task_id="distillation_gate", gate="distillation", artifact=distilled.output, gates=plan["gates"])
    report_at_the_end({"teacher": teacher, "rows": rows, "distilled": distilled}, plan=plan)


distill()
