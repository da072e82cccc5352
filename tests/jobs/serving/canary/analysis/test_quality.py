"""Which answers are bad."""

from __future__ import annotations

import json

import pytest

from include.errors import DataError
from include.release.rollouts import Quality
from jobs.serving.canary.analysis.quality import Checker
from jobs.serving.canary.servers.golden import GoldenPrompt, read_golden, spread

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


def test_golden_prompts_are_spread_over_all():
    rows = [GoldenPrompt(messages=(), reference=str(number), answer="") for number in range(10)]
    assert [row.reference for row in spread(rows, 4)] == ["0", "2", "5", "7"]
    assert len(spread(rows, 50)) == 10


@pytest.mark.parametrize("text", ["", "not json\n", '{"messages": []}\n'])
def test_an_engine_without_golden_prompts_is_told(tmp_path, text):
    (tmp_path / "golden.jsonl").write_text(text)
    with pytest.raises(DataError, match="build the engine again"):
        read_golden(tmp_path)


def test_golden_prompts_are_read(tmp_path):
    row = {
        "id": "1",
        "messages": [{"role": "user", "content": "파드"}],
        "reference": "a",
        "answer": "b",
        "exact_match": 0,
    }
    (tmp_path / "golden.jsonl").write_text(json.dumps(row, ensure_ascii=False) + "\n")
    assert [prompt.answer for prompt in read_golden(tmp_path)] == ["b"]
