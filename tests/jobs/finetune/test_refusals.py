"""Rows and chat templates that cannot be trained on: the job ends before its first step, and says which and why."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.faults.scenario import scenario
from tests.jobs.models import conversation, jsonl

TOLD = "the job ends with 65 and says which row, why, and what to do; no artifact exists"


def rows_for_training(count: int) -> list[dict[str, Any]]:
    return [conversation(f"row-{n}", f"logs pod web-{n}", f"kubectl logs web-{n} -n prod") for n in range(count)]


def untrainable(when: str, change: Callable[[list[dict[str, Any]]], object], *words: str, **config: Any) -> Any:
    mark = scenario(given="a curated data set and a base model", when=when, then=TOLD)
    return pytest.param(change, config, words, id=when, marks=mark)


def _lengthen(*rows: dict[str, Any]) -> None:
    for row in rows:
        row["messages"][0]["content"] = "pod " * 80


def _silence(row: dict[str, Any]) -> None:
    del row["messages"][1:]


@pytest.mark.parametrize(
    ("change", "settings", "words"),
    [
        untrainable("one row is longer than max_tokens", lambda rows: _lengthen(rows[4]),
                    "train.jsonl, row 5 (id row-4)", "max_tokens is 64", "take the row out"),
        untrainable("all rows are longer than max_tokens, so that no token would be trained on",
                    lambda rows: _lengthen(*rows), "train.jsonl, row 1 (id row-0)", "max_tokens is 64"),
        untrainable("a row has no assistant", lambda rows: _silence(rows[0]),
                    "row 1 (id row-0)", "no token to train on", "give it an assistant message"),
        untrainable("there are fewer rows than ranks", lambda rows: rows.__delitem__(slice(1, None)),
                    "train.jsonl has 1 rows for 2 processes", "lower finetune.processes to 1",
                    processes=2, local_batch_size=4),
        untrainable("there are no rows", list.clear, "train.jsonl has no rows", "what curation removed"),
    ],
)  # fmt: skip
def test_rows_that_cannot_be_trained_on(refused, config, base, make_artifact, change, settings, words) -> None:
    rows = rows_for_training(12)
    change(rows)
    data = make_artifact("changed", {"train.jsonl": jsonl(rows), "validation.jsonl": jsonl(rows_for_training(4))})
    message = refused("finetune", {**config, **settings}, {"base": base, "data": data})
    assert all(word in message for word in words), message


REPLY = "{% generation %}{{ messages[-1].content }}{% endgeneration %}"


def template(when: str, text: str, code: int, *words: str) -> Any:
    then = "fine-tuning ends with 64, or 65 where the row may be at fault, says what to do, and trains nothing"
    mark = scenario(given="a recipe with a chat template", when=when, then=then)
    return pytest.param(text, code, words, id=when, marks=mark)


@pytest.mark.parametrize(
    ("text", "code", "words"),
    [
        template("it is empty", " \n", 64, "chat_template: it is empty", "name a file of include/templates/"),
        template("it marks nothing to train on", "{{ messages }}", 64, "no {% generation %} block"),
        template("it does not parse", "{% generation %}{{ oops {% endgeneration %}", 64, "not valid Jinja"),
        template("it reaches for Python's inside", REPLY + "{{ ''.__class__.__mro__[1].__subclasses__() }}", 64,
                 "reaches for what a template must not", "__class__"),
        template("it changes the conversation", REPLY + "{{ messages.append(1) }}", 64, "must not"),
        template("it raises an error", REPLY + "{{ raise_exception('no system, please') }}", 65,
                 "row 1 (id row-0)", "no system, please", "correct the template, or take the row out"),
        template("it divides by zero", REPLY + "{{ 1 // 0 }}", 65, "row 1 (id row-0)", "ZeroDivisionError"),
        template("it counts to a billion", REPLY + "{% for n in range(10**9) %}{% endfor %}", 65, "Range too big"),
        template("it trains on blank text only", "{{ messages[0].content }}{% generation %}{% endgeneration %}", 65,
                 "no token to train on"),
    ],
)  # fmt: skip
def test_a_chat_template_that_cannot_be_used(refused, config, base, data, text, code, words) -> None:
    message = refused("finetune", {**config, "chat_template": text}, {"base": base, "data": data}, code)
    assert all(word in message for word in words), message
