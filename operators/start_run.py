"""Starts a run of another DAG, unless it exists."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from airflow.sdk import BaseOperator
from airflow.sdk.exceptions import DagRunTriggerException

if TYPE_CHECKING:
    from airflow.sdk import Context


class StartRunOperator(BaseOperator):
    """Start a run of another DAG; the task is skipped where that run exists already.

    TriggerDagRunOperator does the same, but importing it costs every parse half a CPU-second. And none of the arguments
    is a template: Airflow renders those of a mapped task, and one of them is a file name, which anybody may choose.

    Args:
        starts: id of the other DAG.
        run_id, conf: of the run.
    """

    template_fields: Sequence[str] = ()

    def __init__(self, *, starts: str, run_id: str, conf: Mapping[str, Any], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.starts = starts
        self.run_id = run_id
        self.conf = conf

    def execute(self, context: Context) -> NoReturn:
        raise DagRunTriggerException(
            trigger_dag_id=self.starts,
            dag_run_id=self.run_id,
            conf=dict(self.conf),
            reset_dag_run=False,
            skip_when_already_exists=True,
            wait_for_completion=False,
            allowed_states=[],
            failed_states=[],
            poke_interval=60,
            deferrable=False,
        )
