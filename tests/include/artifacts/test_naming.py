from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from include.artifacts.naming import artifact_name, canonical_json, checkpoint_name

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(st.text(), json_values, max_size=6))
def test_the_order_of_keys_does_not_matter(value):
    backwards = dict(reversed(value.items()))
    assert canonical_json(value) == canonical_json(backwards)


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
