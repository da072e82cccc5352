"""A row's split depends on the row, not on its company."""

from __future__ import annotations

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.common.conversations import comparison_key
from jobs.curate.splits import assign

REQUESTS = [f"show pod {number}" for number in range(4000)]
SHARES = {"heldout": 0.1, "validation": 0.05, "seed": 1}


def test_shares_are_as_asked():
    counts = Counter(assign(REQUESTS, **SHARES))
    assert 330 < counts["heldout"] < 470
    assert 150 < counts["validation"] < 250


@settings(max_examples=20)
@given(st.integers(500, 600), st.randoms(use_true_random=False))
def test_a_row_stays_in_its_split_whatever_else_is_there(count, draw):
    numbers = draw.sample(range(len(REQUESTS)), count)
    everything = dict(zip(REQUESTS, assign(REQUESTS, **SHARES), strict=True))
    some = [REQUESTS[number] for number in sorted(numbers)]
    assert assign(some, **SHARES) == [everything[request] for request in some]


@given(
    st.lists(st.text(), min_size=1, max_size=30).flatmap(
        lambda texts: st.tuples(st.just(texts), st.permutations(range(len(texts))))
    )
)
def test_the_order_of_the_rows_makes_no_difference(case):
    texts, order = case
    found = assign(texts, **SHARES)
    assert assign([texts[row] for row in order], **SHARES) == [found[row] for row in order]


def test_another_seed_is_another_split():
    assert assign(REQUESTS, **SHARES) != assign(REQUESTS, **{**SHARES, "seed": 2})


def test_one_request_with_two_answers_is_on_one_side():
    assert assign(["Show the pods."] * 2 + REQUESTS, **SHARES)[0] == assign(["show  the pods", *REQUESTS], **SHARES)[0]


@given(st.lists(st.text(min_size=1), min_size=1, max_size=6))
def test_small_sets_fill_as_many_splits_as_they_can(requests):
    distinct = len({comparison_key(request) for request in requests})
    filled = set(assign(requests, heldout=0.4, validation=0.4, seed=0))
    assert "train" in filled
    assert ("heldout" in filled) == (distinct > 1)
    assert "validation" in assign([*requests, *REQUESTS[:20]], heldout=0.01, validation=0.01, seed=0)


def test_no_share_is_no_row():
    assert set(assign(REQUESTS, heldout=0, validation=0, seed=0)) == {"train"}
