"""Rows that are wrong: each is removed with its reason, and all others stay; or nothing is left, and curation ends."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from include.errors import DataError
from include.specs.curate import Config
from jobs.common.heldout import read_rows as held_out
from jobs.curate.curation import curate
from jobs.curate.output import write
from jobs.curate.parsing import read_rows
from tests.faults.scenario import scenario

REMOVED = "curate removes the row, lists it with line and reason, and keeps all others"
TOLD = "the job ends with 65 and says which row, why, and what to do; no artifact exists"


def jsonl(*rows: Any) -> bytes:
    return b"".join(row if isinstance(row, bytes) else json.dumps(row).encode() + b"\n" for row in rows)


PAIRS = [{"prompt": f"show the pod {n} of team blue", "completion": f"kubectl get pod {n}"} for n in range(20)]
LONG = {"prompt": " ".join(f"word{number}" for number in range(60)), "completion": "kubectl get pods"}


def turns(*turns: tuple[Any, Any]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


def removed(when: str, row: Any, reason: str, detail: str) -> Any:
    mark = scenario(given="a row among good ones", when=when, then=REMOVED)
    return pytest.param(row, reason, detail, id=when, marks=mark)


def deep(levels: int) -> bytes:
    return b'{"prompt": "show", "completion": ' + b"[" * levels + b"]" * levels + b"}\n"


def answer(literal: bytes) -> bytes:
    return b'{"prompt": "show the answer", "completion": ' + literal + b"}\n"


BAD_PAIRS = [
    removed("it is cut off", b'{"prompt": "show the\n', "broken_json", "not valid JSON (Unterminated string"),
    removed("it is not JSON", b"show the pods\n", "broken_json", "not valid JSON (Expecting value at character 1)"),
    removed("it is a list", [1, 2], "not_an_object", "a list, not an object"),
    removed("it is a number", 7, "not_an_object", "a number, not an object"),
    removed("it is null", None, "not_an_object", "null, not an object"),
    removed("it has no answer", {"prompt": "show"}, "missing_column", "has no completion, but prompt"),
    removed("its answer is an object", answer(b'{"a": 1}'), "wrong_type", "completion is an object, not text"),
    removed("its answer is a list", answer(b'["a"]'), "wrong_type", "completion is a list, not text"),
    removed("its answer is a number", answer(b"1"), "wrong_type", "completion is a number, not text"),
    removed("its answer is null", answer(b"null"), "wrong_type", "completion is null, not text"),
    removed("its answer is NaN", answer(b"NaN"), "broken_json", "NaN is no number"),
    removed("its answer is -Infinity", answer(b"-Infinity"), "broken_json", "-Infinity is no number"),
    removed("its answer is 1e999", answer(b"1e999"), "wrong_type", "completion is a number, not text"),
    removed("its answer is a number of 4,000 digits", answer(b"7" * 4000), "wrong_type", "a number, not text"),
    removed("its answer is a number of 5,000 digits", answer(b"7" * 5000), "broken_json", "thousands of digits"),
    removed("a column stands in it twice", b'{"prompt": "a", "prompt": "b", "completion": "c"}\n', "broken_json",
            "prompt stands there twice"),
    removed("its answer is nested in 900 brackets", deep(900), "broken_json", "nested deeper than 100 levels"),
    removed("its answer is nested in 10,000 brackets", deep(10_000), "broken_json", "nested deeper than 100 levels"),
    removed("its request is blank", {"prompt": " \n", "completion": "kubectl"}, "empty_request", "holds no text"),
    removed("its answer is invisible", {"prompt": "show", "completion": "\u200b\u2060"}, "empty_answer", "no text"),
    removed("its label is half a character", {"prompt": "show the", "completion": "pod", "kind": "\ud800"},
            "wrong_type", "kind holds half a character"),
    removed("it is an exact duplicate", PAIRS[3], "exact_duplicate", "same as data.jsonl, line 4"),
    removed("it is nearly a duplicate", LONG | {"prompt": LONG["prompt"].replace("word59", "Word 59!")},
            "near_duplicate", "nearly the same as data.jsonl, line 21"),
]  # fmt: skip
BAD_CONVERSATIONS = [
    removed("its messages are text", {"messages": "show"}, "bad_messages", "text, not a list of messages"),
    removed("its messages are an empty list", {"messages": []}, "bad_messages", "an empty list"),
    removed("its roles are another tool's", turns(("human", "a"), ("gpt", "b")), "bad_messages", "0 has no role of"),
    removed("the system speaks in the middle", turns(("user", "a"), ("system", "b"), ("assistant", "c")),
            "bad_messages", "message 1 is the system's, where it is the assistant's turn"),
    removed("two users speak in a row", turns(("system", "s"), ("user", "a"), ("user", "b"), ("assistant", "c")),
            "bad_messages", "message 2 is the user's, where it is the assistant's turn"),
    removed("the assistant speaks first", turns(("assistant", "a"), ("user", "b"), ("assistant", "c")),
            "bad_messages", "message 0 is the assistant's, where it is the user's turn"),
    removed("the user has the last word", turns(("user", "a")), "bad_messages", "last message is not the assistant's"),
    removed("a content is a list of parts", turns(("user", [{"type": "text"}]), ("assistant", "c")),
            "bad_messages", "message 0 has a list as its content"),
    removed("the assistant says nothing", turns(("user", "show it"), ("assistant", "")), "empty_answer",
            "message 1 holds no text"),
    removed("an assistant's turn amid others is empty",
            turns(("user", "show it"), ("assistant", "\x00 "), ("user", "please"), ("assistant", "kubectl get")),
            "empty_answer", "message 1 holds no text"),
]  # fmt: skip


def curated(folder: Path, data: bytes, **mapping: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return the funnel, and the removed rows as their file has them, which is strict JSON."""
    (folder / "data.jsonl").write_bytes(data)
    config = Config.model_validate({"mapping": mapping})
    rows = read_rows(folder, config.mapping, where="data set")
    funnel = write(curate(rows, config, [], on_step=lambda step, **fields: None), folder, config)
    strict = json.JSONDecoder(parse_constant=lambda name: pytest.fail(f"removed.jsonl holds {name}"))
    listed = (folder / "removed.jsonl").read_text(encoding="utf-8").split("\n")[:-1]
    return funnel, [strict.decode(line) for line in listed]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """All bad pairs in one data set, with a BOM and Windows' line ends: every row has its own reason."""
    bad = [param.values[0] for param in BAD_PAIRS]
    data = b"\xef\xbb\xbf" + jsonl(*PAIRS, LONG, *bad).replace(b"\n", b"\r\n")
    funnel, listed = curated(tmp_path_factory.mktemp("pairs"), data, label="kind")
    assert (funnel["kept"], len(listed)) == (len(PAIRS) + 1, len(bad))
    return listed


@pytest.fixture(scope="module")
def conversations(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    good = [turns(("user", pair["prompt"]), ("assistant", pair["completion"])) for pair in PAIRS]
    bad = [param.values[0] for param in BAD_CONVERSATIONS]
    funnel, listed = curated(tmp_path_factory.mktemp("conversations"), jsonl(*good, *bad))
    assert (funnel["kept"], len(listed)) == (len(good), len(bad))
    return listed


@pytest.mark.parametrize(("row", "reason", "detail"), BAD_PAIRS)
def test_a_bad_row_among_good_ones(pairs, reads, row, reason, detail) -> None:
    number = [param.values[0] for param in BAD_PAIRS].index(row)
    is_removed(pairs[number], len(PAIRS) + 1 + number + 1, reason, detail, reads)


@pytest.mark.parametrize(("row", "reason", "detail"), BAD_CONVERSATIONS)
def test_a_bad_conversation_among_good_ones(conversations, reads, row, reason, detail) -> None:
    number = [param.values[0] for param in BAD_CONVERSATIONS].index(row)
    is_removed(conversations[number], len(PAIRS) + number + 1, reason, detail, reads)


def is_removed(found: dict[str, Any], line: int, reason: str, detail: str, reads: Callable[[object], None]) -> None:
    assert (found["file"], found["line"], found["reason"]) == ("data.jsonl", line, reason)
    assert detail in found["detail"]
    reads(f"{found['file']}, line {found['line']}: {found['reason']}: {found['detail']}")


def useless(when: str, rows: list[Any], excluded: list[Any] | None, *words: str) -> Any:
    mark = scenario(given="a data set that curate reads", when=when, then=TOLD)
    return pytest.param(rows, excluded, words, id=when, marks=mark)


@pytest.mark.remedy("correct the data, or curate.mapping and curate.filters")
@pytest.mark.parametrize(
    ("more", "config", "corrected"),
    [
        ({"answer": "kubectl get pods"}, {"mapping": {"prompt": "prompt", "completion": "other"}},
         {"mapping": {"prompt": "prompt", "completion": "answer"}}),
        ({"completion": "kubectl get pods"}, {"filters": {"min_words": 50}}, {"filters": {"min_words": 2}}),
    ],
    ids=["mapping", "filters"],
)  # fmt: skip
def test_data_that_can_be_used_once_the_recipe_is_corrected(
    make_artifact, refused, run_here, more, config, corrected
) -> None:
    rows = [{"prompt": f"show the pod {n} of team blue", "other": 7, **more} for n in range(20)]
    inputs = {"data": make_artifact("data", {"data.jsonl": jsonl(*rows)})}
    assert refused("curate", config, inputs).endswith("correct the data, or curate.mapping and curate.filters")
    assert json.loads((run_here("curate", corrected, inputs) / "funnel.json").read_text())["kept"] > 0


@pytest.mark.remedy("give the recipe a held-out set, or raise curate.heldout_fraction")
def test_without_held_out_rows_there_are_two_ways_to_some(make_artifact, run_here) -> None:
    inputs = {"data": make_artifact("data", {"data.jsonl": jsonl(*PAIRS)})}
    says = "is empty: give the recipe a held-out set, or raise curate.heldout_fraction"
    with pytest.raises(DataError, match=f"{re.escape(says)}$"):
        held_out(run_here("curate", {"heldout_fraction": 0}, inputs) / "heldout.jsonl")
    assert held_out(run_here("curate", {"heldout_fraction": 0.2}, inputs) / "heldout.jsonl")
    inputs["heldout"] = make_artifact("heldout", {"data.jsonl": jsonl(LONG)})
    assert held_out(run_here("curate", {"heldout_fraction": 0}, inputs) / "heldout.jsonl")


@pytest.mark.parametrize(
    ("rows", "excluded", "words"),
    [
        useless("every output is an object", [{"input": "show", "output": {"a": n}} for n in range(9)], None,
                "none of the 9 rows is left", "wrong_type 9 (first: data.jsonl, line 1: output is an object"),
        useless("its columns have unknown names", [{"question": "a", "reply": "b"}], None,
                "columns found: question, reply", "set curate.mapping.prompt"),
        useless("it is the held-out set itself", PAIRS, PAIRS, "none of the 20 rows is left", "held_out 20"),
        useless("a row of the held-out set has no answer", PAIRS, [*PAIRS[:2], {"prompt": "a", "completion": None}],
                "held-out set: data.jsonl, line 3: completion is null", "correct the row"),
    ],
)  # fmt: skip
def test_data_of_which_nothing_can_be_used(make_artifact, refused, rows, excluded, words) -> None:
    inputs = {"data": make_artifact("data", {"data.jsonl": jsonl(*rows)})}
    if excluded:
        inputs["heldout"] = make_artifact("heldout", {"data.jsonl": jsonl(*excluded)})
    message = refused("curate", {}, inputs)
    assert all(word in message for word in words), message
