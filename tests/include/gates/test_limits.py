from __future__ import annotations

import pytest
from pydantic import TypeAdapter

from include.errors import ConfigurationError
from include.gates import GateLimits, find_gate
from include.job_plan import JobPlan
from include.specs.register import Config

NAMES = {"model": "kubectl", "recipe": "demo/tiny", "run_id": "manual__1"}


def test_limits_by_gate_are_complete():
    found = TypeAdapter(GateLimits).validate_python({"evaluation": {"min_rows": 5}})
    assert found == {"evaluation": find_gate("evaluation").limits(min_rows=5).model_dump(mode="json")}


@pytest.mark.parametrize(
    ("gates", "says"),
    [
        ({"evaluatio": {}}, "config.gates: .*no gate 'evaluatio': did you mean 'evaluation'"),
        ({"evaluation": {"min_row": 5}}, "config.gates: .*evaluation.min_row: Extra inputs are not permitted"),
        ({"evaluation": {"min_rows": 0}}, "config.gates: .*evaluation.min_rows: Input should be greater than or equal"),
    ],
)
def test_a_registration_is_not_planned_with_limits_that_no_gate_has(store, gates, says):
    with pytest.raises(ConfigurationError, match=f"job register: {says}"):
        JobPlan.prepare("register", config={**NAMES, "gates": gates}, inputs={}, store=store)


def test_a_registration_that_version_0_1_planned_is_read():
    limits = find_gate("evaluation").limits(min_rows=5).model_dump(mode="json")
    assert Config.model_validate({**NAMES, "gate": limits}).gates == {"evaluation": limits}
