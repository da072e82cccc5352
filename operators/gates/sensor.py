"""Gates: sensors over artifacts that let a run continue or end it with the reasons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from airflow.sdk import BaseSensorOperator
from pydantic import ValidationError

from include.errors import ConfigurationError, first_problem
from include.gates import Gate, Verdict, find_gate
from include.platforms import current_platform
from operators.errors import DecisionError, record_failure
from operators.links import JudgedArtifactLink
from operators.literals import LiteralFields
from operators.store import store_of

if TYPE_CHECKING:
    from airflow.sdk import Context


class GateSensor(LiteralFields, BaseSensorOperator):
    """Judge an artifact: *pass* lets the run continue; *fail* and *inconclusive* end the run red, with every reason.

    Reads the artifact at once, and defers only where it is not there yet.

    Args:
        gate: which rule judges: a module of `include/gates/`.
        artifact: URI of what the gate's job made.
        gates: the `gates` section of a resolved recipe: limits by gate; a gate that it lacks has its defaults. Texts in
            it are no templates (`operators.literals`).

    Raises:
        ConfigurationError: there is no such gate.
    """

    template_fields: Sequence[str] = ("artifact", "gates")
    literal_fields: ClassVar[frozenset[str]] = frozenset({"gates"})
    template_fields_renderers = {"gates": "json"}
    operator_extra_links = (JudgedArtifactLink(),)
    ui_color = "#fbf3d9"

    def __init__(
        self,
        *,
        gate: str,
        artifact: str,
        gates: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        find_gate(gate)
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
        gate = find_gate(self.gate)
        verdict = self._verdict(gate)
        for name, value in verdict.figures.items():
            self.log.info("%s=%s", name, value)
        if verdict.passed:
            self.log.info("%s", verdict.summary)
            return
        for reason in verdict.reasons:
            self.log.error("%s", reason)
        message = f"{verdict.summary}. {gate.remedy.format(artifact=self.artifact)}"
        raise DecisionError(message, event="gate_failed")

    def _verdict(self, gate: Gate[Any]) -> Verdict:
        store, name = store_of(self.artifact)
        try:
            limits = gate.limits.model_validate((self.gates or {}).get(self.gate, {}))
        except ValidationError as error:
            key, _, problem = first_problem(error, "limits").partition(": ")
            raise ConfigurationError(
                f"the recipe's gates.{self.gate}.{key} is not a limit ({problem}): correct gates.{self.gate}.{key}"
            ) from None
        return gate.verdict(limits, self.artifact, partial(store.read_bytes, name))
