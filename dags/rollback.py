"""### Back to a version that was live before, or forward again

All traffic goes there at once, after the same proofs that it answers; a version that is still loaded is back within
seconds. A release that goes on is taken back first. MLflow's alias `champion` moves after the traffic did.
"""

from __future__ import annotations

from datetime import timedelta

from airflow.sdk import Param, dag

from operators.defaults import RETRIES
from operators.notifications import notified, notified_promotion
from operators.release.planning import model_choices, promotion
from operators.release.rollout_operator import CanaryRolloutOperator
from operators.stages import stage


@dag(
    schedule=None,
    catchup=False,
    tags=["anemone"],
    default_args={"owner": "anemone", **RETRIES, **notified()},
    doc_md=__doc__,
    params={
        "model": Param(
            model_choices()[0],
            type="string",
            minLength=1,
            examples=model_choices(),
            title="Model",
            description_md="The public model name.",
            section="Rollback",
        ),
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
    # A controller or registry that is being started again is waited for.
    patience = {"retries": 30, "retry_delay": timedelta(seconds=20), "retry_exponential_backoff": 0}
    back = CanaryRolloutOperator(
        task_id="rollback",
        kind="rollback",
        target="{{ params.model }}",
        version="{{ params.version or '' }}",
        **patience,
    )
    back >> stage("promote", promotion("{{ params.model }}"), **patience, **notified_promotion())


rollback()
