"""Exact match and ROUGE-L, in any script."""

from __future__ import annotations

import pytest

from jobs.common.scoring import exact_match, rouge_l


@pytest.mark.parametrize(
    ("answer", "reference", "expected"),
    [
        ("kubectl get pods", "kubectl get pods", 1),
        ("  kubectl  get\tpods\n", "kubectl get pods", 1),
        ("kubectl get Pods", "kubectl get pods", 0),
        ("kubectl get pods;", "kubectl get pods", 0),
        ("", "kubectl get pods", 0),
        ("\u1100\u1161", "가", 1),
    ],
)
def test_exact_match_ignores_white_space_and_unicode_form_only(answer: str, reference: str, expected: int) -> None:
    assert exact_match(answer, reference) == expected


@pytest.mark.parametrize(
    ("answer", "reference", "expected"),
    [
        ("police kill the gunman", "police killed the gunman", 3 / 4),
        ("the gunman kill police", "police killed the gunman", 2 / 4),
        ("Kubectl, get pods!", "kubectl get pods", 1.0),
        ("파드 로그를 보여줘", "파드 로그를 지워줘", 2 / 3),
        ("파드 로그를", "파드 로그를 전부 지워줘", 2 * (1 * 0.5) / 1.5),
        ("", "kubectl get pods", 0.0),
    ],
)
def test_rouge_l_counts_words_of_any_script(answer: str, reference: str, expected: float) -> None:
    """The first two are the worked example of Lin (2004), section 3.1."""
    assert rouge_l(answer, reference) == pytest.approx(expected)
