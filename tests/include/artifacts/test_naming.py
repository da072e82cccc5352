from __future__ import annotations

import json
from typing import Annotated, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from include.artifacts.naming import artifact_name, canonical_json, checkpoint_name
from include.model import Model
from include.specs.base import NOT_IDENTITY, identity

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(st.text(), json_values, max_size=6))
def test_the_order_of_keys_does_not_matter(value):
    backwards = dict(reversed(value.items()))
    assert canonical_json(value) == canonical_json(backwards)


def strict(value: Any) -> Any:
    """Return the value with every number's type beside it: 1, 1.0 and True are equal in Python, and no two in JSON."""
    if isinstance(value, dict):
        return {key: strict(item) for key, item in value.items()}
    if isinstance(value, list):
        return [strict(item) for item in value]
    return type(value).__name__, repr(value)


@given(json_values)
def test_canonical_json_says_everything_that_the_value_says(value):
    assert strict(json.loads(canonical_json(value))) == strict(value)


def name(value: Any) -> str:
    return artifact_name("curate", code="0", identity={"config": value})


@given(json_values, json_values)
def test_two_configurations_share_a_name_exactly_when_they_are_equal(one, other):
    assert (name(one) == name(other)) == (strict(one) == strict(other))
    assert name(one) == name(json.loads(json.dumps(one)))


class Configured(Model):
    rate: float
    text: str
    inner: tuple[float, ...] = ()
    workers: Annotated[int, NOT_IDENTITY] = 1
    place: Annotated[str, NOT_IDENTITY] = ""


numbers = st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**53), 2**53)
configurations = st.fixed_dictionaries(
    {"rate": numbers, "text": st.text(), "inner": st.lists(numbers, max_size=3)},
    optional={"workers": st.integers(), "place": st.text()},
)


@given(configurations, st.integers(), st.text())
def test_what_cannot_change_the_result_is_not_in_the_name(fields, workers, place):
    one = Configured(**fields)
    assert name(identity(one)) == name(identity(one.model_copy(update={"workers": workers, "place": place})))


@given(configurations, configurations)
def test_what_can_change_the_result_is_in_the_name(one, other):
    first, second = (Configured(**{key: fields[key] for key in ("rate", "text", "inner")}) for fields in (one, other))
    assert (name(identity(first)) == name(identity(second))) == (repr(first) == repr(second))


@given(numbers)
def test_an_integer_and_the_float_that_a_field_makes_of_it_are_one(value):
    assert name(identity(Configured(rate=value, text=""))) == name(identity(Configured(rate=float(value), text="")))


@pytest.mark.parametrize("rate", [float("nan"), float("inf")])
def test_a_configuration_without_a_number_is_refused_before_it_is_named(rate):
    with pytest.raises(ValueError, match="finite number"):
        Configured(rate=rate, text="")


def test_every_part_of_the_identity_gives_another_name():
    names = {
        artifact_name("curate", code="1", identity={"a": 1}),
        artifact_name("curate", code="2", identity={"a": 1}),
        artifact_name("curate", code="1", identity={"a": 2}),
        artifact_name("check", code="1", identity={"a": 1}),
    }
    assert len(names) == 4
    assert artifact_name("curate", code="1", identity={"a": 1}) in names


def test_nan_has_no_name():
    with pytest.raises(ValueError, match="Out of range"):
        canonical_json(float("nan"))


def test_checkpoints_sort_by_step():
    assert checkpoint_name("run", 90) < checkpoint_name("run", 100)
