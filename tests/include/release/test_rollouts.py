"""What may be asked of the controller: above all, nothing that it could not read again."""

from __future__ import annotations

import json

import pytest
from pydantic import ValidationError

from include.release.rollouts import CanaryPolicy

SECONDS = [name for name in CanaryPolicy.model_fields if name.endswith("_seconds")]
FLOATS = [*SECONDS, "latency_tolerance", "alpha", "promotion_alpha", "max_bad_rate", "latency_quantile", "sample"]


@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize("value", ["1e999", "NaN", "-1"])
def test_no_number_of_a_policy_is_without_an_end(name, value):
    with pytest.raises(ValidationError):
        CanaryPolicy.model_validate_json(f'{{"{name}": {value}}}')


@pytest.mark.parametrize("value", ["1e999", "NaN"])
def test_no_weight_and_no_share_of_golden_prompts_either(value):
    for document in (f'{{"steps": [0.1, {value}]}}', f'{{"quality": {{"min_golden": {value}}}}}'):
        with pytest.raises(ValidationError):
            CanaryPolicy.model_validate_json(document)


@pytest.mark.parametrize("name", SECONDS)
def test_no_time_is_longer_than_a_year(name):
    """Python's clock has an end, too."""
    with pytest.raises(ValidationError):
        CanaryPolicy.model_validate({name: 1e300})


def test_a_policy_reads_back():
    policy = CanaryPolicy(warm_seconds=31_536_000, latency_tolerance=1.5)
    assert CanaryPolicy.model_validate(json.loads(policy.model_dump_json())) == policy
