"""Which rows are near duplicates, and that one of each group is kept."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from include.specs.curate import NearDuplicates
from jobs.curate.duplicates import (
    MarkExactDuplicates,
    MarkHeldOut,
    MarkNearDuplicates,
    first_of_group,
    signatures,
    similar_pairs,
)
from jobs.curate.pipeline import as_batch

SETTINGS = NearDuplicates()
LONG = " ".join(f"word{number}" for number in range(60))


def pairs(texts: list[str], answers: list[str] | None = None) -> list[tuple[int, int]]:
    return similar_pairs(texts, answers or ["kubectl get pods"] * len(texts), SETTINGS, 42)


def test_case_blanks_and_punctuation_make_no_difference():
    assert pairs(["Show the pods, please!", "show  the pods please"]) == [(0, 1)]


def test_long_texts_that_differ_in_a_word_are_near_duplicates():
    assert pairs([LONG, LONG.replace("word59", "other"), "x " * 60]) == [(0, 1)]


def test_short_requests_for_different_things_are_not():
    texts = [f"show the logs of web-{number} in namespace prod" for number in range(50)]
    assert pairs(texts) == []


def test_the_same_long_request_with_another_answer_is_not_a_duplicate():
    assert pairs([LONG, LONG], ["yes", "no"]) == []


def test_many_copies_are_one_group_in_linear_work():
    found = pairs(["restart the deployment web"] * 3000)
    assert len(found) < 2 * 3000
    assert set(first_of_group(found, 3000)) == {0}


def test_the_estimate_is_close_to_the_true_similarity():
    base = [f"w{number}" for number in range(400)]
    texts = [" ".join(base), " ".join(base[:300] + [f"v{number}" for number in range(100)])]
    a, b = signatures(texts, 1, 1024, 7)
    assert np.mean(a == b) == pytest.approx(300 / 500, abs=0.06)


def test_a_text_without_words_has_a_signature():
    assert signatures(["!!!", "???"], 5, 112, 42).shape == (2, 112)


@given(st.integers(2, 40).flatmap(lambda n: st.tuples(st.just(n), st.lists(st.tuples(*[st.integers(0, n - 1)] * 2)))))
def test_every_group_keeps_exactly_its_first_row(case):
    count, links = case
    first = first_of_group([(a, b) for a, b in links if a != b], count)
    groups = {row: {row} for row in range(count)}
    for a, b in links:
        joined = groups[a] | groups[b]
        for row in joined:
            groups[row] = joined
    assert [int(row) for row in first] == [min(groups[row]) for row in range(count)]


def test_held_out_requests_are_found_and_others_in_the_same_words_are_not():
    import pandas as pd

    held = [{"id": "h", "request": "Show the pods of prod.", "text": "Show the pods of prod.\nx", "answer": "x"}]
    requests = ["show the pods  of prod", "show the pods of staging"]
    frame = pd.DataFrame({"request": requests, "text": [f"{text}\ny" for text in requests], "answer": ["y", "y"]})
    marked = MarkHeldOut(held, SETTINGS, 42).process(as_batch(frame)).to_pandas()
    assert marked["held_out_as"].tolist()[0] == "h"
    assert marked["held_out_as"].isna().tolist() == [False, True]


SUBJECTS = [" ".join(f"{letter}{number}" for number in range(12)) for letter in "abcde"]
VARIANTS = (str, str.upper, str.title, lambda text: text.replace(" ", "  ") + "!", lambda text: f"'{text}',")


@settings(max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=40))
def test_one_of_each_group_is_left_in_whatever_order_its_rows_come(rows):
    import pandas as pd

    texts = [VARIANTS[variant](SUBJECTS[subject]) for subject, variant in rows]
    frame = pd.DataFrame(
        {
            "place": [f"line {number}" for number in range(len(rows))],
            "id": texts,
            "text": texts,
            "answer": ["kubectl get pods"] * len(rows),
        }
    )
    exact = MarkExactDuplicates().process(as_batch(frame.copy())).to_pandas()["exact_duplicate_of"]
    near = MarkNearDuplicates(SETTINGS, 42).process(as_batch(frame.copy())).to_pandas()["near_duplicate_of"]
    assert sorted(frame["text"][exact.isna()]) == sorted(set(texts))
    assert sorted(subject for (subject, _), kept in zip(rows, near.isna(), strict=True) if kept) == sorted(
        {subject for subject, _ in rows}
    )
