"""Gates: sensors over artifacts that let a run go on or end it with the reasons."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal

from airflow.sdk import BaseSensorOperator
from pydantic import ValidationError

from include.errors import ArtifactError, ConfigurationError
from include.gates import Verdict
from include.gates.data_quality import data_quality
from include.gates.evaluation import EvaluationGate, judge_evaluation
from include.platforms import current_platform
from operators.errors import DecisionError, record_failure
from operators.links import JudgedArtifactLink
from operators.store import store_of

if TYPE_CHECKING:
    from airflow.sdk import Context


_REMEDY = {
    "data_quality": "Mend the data set and announce it again; removed.jsonl of the curated artifact names every row "
    "that was removed, and why, and {artifact} holds the whole report.",
    "evaluation": "Compare the answers with the references in answers.jsonl of {artifact}, then mend the data set or "
    "the recipe.",
}
"""What the person who finds the red task can do."""


class GateSensor(BaseSensorOperator):
    """Judge an artifact: *pass* goes on; *fail* and *inconclusive* end the run red, with every reason.

    Reads the artifact at once, and defers only where it is not there yet.

    Args:
        gate: which rule judges.
        artifact: URI of what `check` or `evaluate` made.
        gates: the `gates` section of a resolved recipe: the limits.
    """

    template_fields: Sequence[str] = ("artifact", "gates")
    template_fields_renderers = {"gates": "json"}
    operator_extra_links = (JudgedArtifactLink(),)
    ui_color = "#fbf3d9"

    def __init__(
        self,
        *,
        gate: Literal["data_quality", "evaluation"],
        artifact: str,
        gates: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.gate = gate
        self.artifact = artifact
        self.gates = gates

    @record_failure
    def execute(self, context: Context) -> None:
        store, name = store_of(self.artifact)
        if store.manifest(name) is not None:
            self._judge()
            return
        from operators.gates.trigger import ArtifactTrigger

        self.log.info("%s is not there yet; waiting", self.artifact)
        self.defer(
            trigger=ArtifactTrigger(uri=self.artifact),
            method_name="judge_after_wait",
            timeout=timedelta(seconds=current_platform().gate_timeout_seconds),
        )

    @record_failure
    def judge_after_wait(self, context: Context, event: Mapping[str, Any]) -> None:
        """Continue after the deferral."""
        self._judge()

    def _judge(self) -> None:
        verdict = self._verdict()
        for name, value in verdict.figures.items():
            self.log.info("%s=%s", name, value)
        if verdict.passed:
            self.log.info("%s", verdict.summary)
            return
        for reason in verdict.reasons:
            self.log.error("%s", reason)
        message = f"{verdict.summary}. {_REMEDY[self.gate].format(artifact=self.artifact)}"
        raise DecisionError(message, event="gate_failed")

    def _verdict(self) -> Verdict:
        store, name = store_of(self.artifact)
        if self.gate == "data_quality":
            return data_quality(store.read_json(name, "result.json"))
        try:
            policy = EvaluationGate.model_validate((self.gates or {}).get("evaluation", {}))
        except ValidationError as error:
            first = error.errors()[0]
            raise ConfigurationError(
                f"the recipe's gates.evaluation.{'.'.join(map(str, first['loc']))} is not a limit ({first['msg']}): "
                "correct the recipe"
            ) from None
        lines = store.read_bytes(name, "scores.jsonl").split(b"\n")
        try:
            scores = [json.loads(line) for line in lines if line.strip()]
        except (ValueError, RecursionError) as error:
            raise ArtifactError(
                f"{self.artifact}: scores.jsonl is not JSON ({error}): clear the evaluation's task with "
                "refresh: [evaluate]"
            ) from None
        return judge_evaluation(policy, store.read_json(name, "results.json"), scores)
