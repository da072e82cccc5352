"""The gate passes only what was looked at, measured, and found good."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from include.gates import Limit, Verdict
from include.gates.data_quality import data_quality

GOOD = {"name": "duplicates", "success": True, "observed": 0.0, "limit": "at most 1%", "message": "duplicates: 0"}
BAD = {
    "name": "lost",
    "success": False,
    "observed": 0.6,
    "limit": "at most 0.2",
    "message": "lost: 0.6, limit at most 0.2",
}


def result(*expectations: object, **changed: object) -> dict[str, object]:
    return {"success": True, "rows": 100, "expectations": list(expectations), "figures": {}, **changed}


def test_good_data_passes_with_its_figures():
    verdict = data_quality(result(GOOD))
    limit = Limit(name="duplicates", observed="0.00%", limit="at most 1%", kept=True)
    assert verdict == Verdict("pass", (), {"rows": 100.0, "duplicates": 0.0}, (limit,))
    assert verdict.passed
    assert verdict.summary == "pass: rows 100; duplicates 0"


def test_each_failed_expectation_is_a_reason_with_observed_value_and_limit():
    other = {**BAD, "name": "balance", "message": None, "observed": 0.01, "limit": "at least 0.2"}
    verdict = data_quality(result(GOOD, BAD, other, success=False))
    assert verdict.reasons == ("lost: 0.6, limit at most 0.2", "balance: 0.01, limit at least 0.2")
    assert verdict.figures == {"rows": 100.0, "duplicates": 0.0, "lost": 0.6, "balance": 0.01}
    assert not verdict.passed


@pytest.mark.parametrize(
    "document",
    [
        None,
        {},
        [],
        result(),
        result(GOOD, rows=0),
        result(GOOD, rows=None),
        result(GOOD, rows=math.nan),
        result(GOOD, rows=True),
        result(GOOD, success=False),
        result(GOOD, expectations=None),
        result(GOOD, None),
        result({**GOOD, "observed": None}),
        result({**GOOD, "observed": math.nan}),
        result({**GOOD, "observed": math.inf}),
        result({**GOOD, "observed": "0"}),
        result({**GOOD, "success": None}),
        result({**GOOD, "success": "true"}),
        result({key: value for key, value in GOOD.items() if key != "success"}),
    ],
)
def test_missing_empty_and_nan_never_pass(document):
    verdict = data_quality(document)
    assert verdict.outcome == "fail"
    assert all(verdict.reasons)


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from(["success", "rows", "expectations", "figures"]), json_values))
def test_no_document_breaks_the_gate(document):
    assert not data_quality(json.loads(json.dumps(document))).passed


def test_a_verdict_that_stops_a_run_needs_a_reason_and_a_pass_needs_numbers():
    with pytest.raises(ValueError, match="needs a reason"):
        Verdict("inconclusive")
    with pytest.raises(ValueError, match="cannot rest on loss"):
        Verdict("pass", figures={"loss": math.nan})
