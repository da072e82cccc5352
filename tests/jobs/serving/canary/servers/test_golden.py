"""The golden prompts of an engine are read, and asked evenly."""

from __future__ import annotations

import json

import pytest

from include.errors import DataError
from jobs.serving.canary.servers.golden import GoldenPrompt, read_golden, spread


def test_golden_prompts_are_spread_over_all():
    rows = [GoldenPrompt(messages=(), reference=str(number), answer="") for number in range(10)]
    assert [row.reference for row in spread(rows, 4)] == ["0", "2", "5", "7"]
    assert len(spread(rows, 50)) == 10


@pytest.mark.remedy("run release with refresh: [engine]")
@pytest.mark.parametrize("text", ["", "not json\n", '{"messages": []}\n'])
def test_golden_prompts_are_read_and_an_engine_without_them_is_to_be_built_anew(tmp_path, text):
    (tmp_path / "golden.jsonl").write_text(text)
    with pytest.raises(DataError, match=r": run release with refresh: \[engine\]$"):
        read_golden(tmp_path)
    row = {
        "id": "1",
        "messages": [{"role": "user", "content": "파드\u2028\u0085"}],
        "reference": "a",
        "answer": "b",
        "exact_match": 0,
    }
    (tmp_path / "golden.jsonl").write_text(json.dumps(row, ensure_ascii=False) + "\n")
    assert [prompt.answer for prompt in read_golden(tmp_path)] == ["b"]
