"""Which answers are bad."""

from __future__ import annotations

import pytest

from include.release.rollouts import Quality
from jobs.serving.canary.analysis.quality import Checker
from jobs.serving.canary.servers.golden import GoldenPrompt

GOLDEN = [
    GoldenPrompt(
        messages=({"role": "user", "content": "파드 목록"},), reference="kubectl get pods", answer="kubectl get po"
    )
]
FORMAT = Quality(answer_format=r"kubectl [^\n]+")


def sample(**changes: object) -> dict[str, object]:
    values = {
        "messages": [{"role": "user", "content": "파드 목록"}],
        "prompt": None,
        "answer": "kubectl get pods",
        "failed": False,
        "empty": False,
        "greedy": True,
    }
    return {**values, **changes}


@pytest.mark.parametrize(
    ("changes", "bad"),
    [
        ({}, False),
        ({"answer": " kubectl  get pods\n"}, False),
        ({"failed": True, "answer": None}, True),
        ({"empty": True, "answer": ""}, True),
        ({"answer": "sudo rm"}, True),
        ({"answer": "kubectl get pods\nand more"}, True),
        ({"answer": "kubectl get nodes"}, True),
        ({"answer": "kubectl get nodes", "greedy": False}, False),
        ({"answer": "kubectl get nodes", "messages": [{"role": "user", "content": "노드"}]}, False),
        ({"answer": "kubectl get nodes", "messages": None, "prompt": "파드 목록"}, False),
    ],
)
def test_bad_answers(changes, bad):
    assert Checker(FORMAT, GOLDEN).is_bad(sample(**changes)) is bad


def test_references_count_only_where_the_policy_says_so():
    unchecked = Checker(Quality(check_references=False), GOLDEN)
    assert unchecked.is_bad(sample(answer="anything")) is False
