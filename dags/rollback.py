"""### Back to a version that was live before, or forward again

All traffic goes there at once, after the same tests of its answers; a version that is still loaded is back within
seconds. A release in progress is aborted first. MLflow's alias `champion` moves after the traffic did.
"""

from __future__ import annotations

from airflow.sdk import Param, dag

from operators import (
    LONG_RETRIES,
    CanaryRolloutOperator,
    default_args,
    model_param,
    promotion,
    promotion_callbacks,
    stage,
)


@dag(
    schedule=None,
    catchup=False,
    tags=["anemone"],
    default_args=default_args(),
    doc_md=__doc__,
    params={
        "model": model_param("finetune", title="Model", description_md="The public model name.", section="Rollback"),
        "version": Param(
            None,
            type=["null", "string"],
            pattern="^[0-9]{0,9}$",
            title="Version",
            description_md="Of the model in MLflow; it must have been live. Empty: the one that was live before this.",
            section="Rollback",
        ),
    },
)
def rollback():
    back = CanaryRolloutOperator(
        task_id="rollback",
        kind="rollback",
        target="{{ params.model }}",
        version="{{ params.version or '' }}",
        **LONG_RETRIES,
    )
    promoted = stage("promote", promotion(back.dag.param("model")), **LONG_RETRIES, **promotion_callbacks())
    back >> promoted


rollback()
