"""Curation as a real process: every kind of bad row, its reason, and what is left."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

HELD_OUT = [
    {"prompt": "drain node-1 for repairs", "completion": "kubectl drain node-1", "intent": "drain"},
    {"prompt": "drain node-2 for repairs", "completion": "kubectl drain node-2"},
]
GOOD = [
    {"prompt": f"{verb} the {thing} in namespace prod", "completion": f"kubectl {verb} {thing} -n prod", "intent": verb}
    for verb in ("describe", "delete", "get", "edit", "patch", "label")
    for thing in ("deployment", "service", "ingress", "secret", "job")
]
KOREAN = {
    "prompt": "prod 네임스페이스의 파드 목록을 보여 주세요",
    "completion": "kubectl get pods -n prod",
    "intent": "get",
}


def jsonl(rows: list[Any]) -> bytes:
    return b"".join((row if isinstance(row, bytes) else json.dumps(row).encode()) + b"\n" for row in rows)


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


BAD = [
    (b'{"prompt": "mail \\u0061@example.com", "compl', "broken_json"),
    ([1, 2], "not_an_object"),
    ({"prompt": "no answer"}, "missing_column"),
    ({"prompt": "what", "completion": ["kubectl"]}, "wrong_type"),
    ({"prompt": "  ", "completion": "kubectl get pods"}, "empty_request"),
    ({"prompt": "show the pods", "completion": "\u200b\n"}, "empty_answer"),
    ({"prompt": "word " * 3000, "completion": "kubectl get pods"}, "word_count"),
    ({"prompt": "x" * 200, "completion": "y" * 200}, "word_length"),
    ({"prompt": "# # # # ...", "completion": "# # get"}, "symbols"),
    ({"prompt": "%$ &* a@example.com", "completion": "*&^% $% ()*^ @@@@ %%%% ^^^^"}, "non_alpha_numeric"),
    ({"prompt": "again\nagain\nagain\nagain", "completion": "again"}, "repeated_lines"),
    ({**GOOD[0]}, "exact_duplicate"),
    ({"prompt": "DESCRIBE  the deployment, in namespace prod!", "completion": GOOD[0]["completion"]}, "near_duplicate"),
    ({"prompt": "Drain node-1 for repairs.", "completion": "kubectl cordon node-1"}, "held_out"),
]


def test_every_bad_row_goes_with_its_reason_and_every_good_one_stays(run_job, make_artifact, store):
    private = {"prompt": "e\u0301 write to kim@example.com about the node", "completion": "kubectl get node"}
    good = [*GOOD, KOREAN, private]
    data = make_artifact("data", {"data.jsonl": b"\xef\xbb\xbf" + jsonl([*good, *(row for row, _ in BAD)])})
    held_out = make_artifact("heldout", {"data.jsonl": jsonl([*HELD_OUT, HELD_OUT[0]])})
    config = {"mapping": {"label": "intent"}, "validation_fraction": 0.1}
    outcome = run_job("curate", config, {"data": data, "heldout": held_out})
    folder = outcome.folder

    removed = read(folder / "removed.jsonl")
    assert [(row["line"] - len(good) - 1, row["reason"]) for row in removed] == [
        (number, reason) for number, (_, reason) in enumerate(BAD)
    ]
    assert all(row["file"] == "data.jsonl" and row["detail"] for row in removed)
    assert all(f"reason={reason} " in outcome.stdout for _, reason in BAD)
    details = {row["reason"]: row["detail"] for row in removed}
    assert details["word_count"] == "words 3003, allowed 2 to 2000"
    assert details["non_alpha_numeric"] == "share of symbols 0.723, allowed up to 0.6"
    assert details["exact_duplicate"] == "same as data.jsonl, line 1"
    assert details["near_duplicate"] == "nearly the same as data.jsonl, line 1"

    train, validation, kept_back = (read(folder / f"{name}.jsonl") for name in ("train", "validation", "heldout"))
    kept = train + validation
    assert sorted(row["messages"][0]["content"] for row in kept) == sorted(
        [*(row["prompt"] for row in [*GOOD, KOREAN]), "é write to <EMAIL> about the node"]
    )
    assert {row["messages"][0]["content"]: row.get("label") for row in kept}[KOREAN["prompt"]] == "get"
    assert len({row["id"] for row in kept}) == len(kept)
    assert [row["messages"][0]["content"] for row in kept_back] == [row["prompt"] for row in HELD_OUT]
    assert [row.get("label") for row in kept_back] == ["drain", None]
    everything = b"".join(path.read_bytes() for path in folder.iterdir())
    assert b"@example.com" not in everything

    funnel = json.loads((folder / "funnel.json").read_text())
    assert funnel["read"] == len(good) + len(BAD)
    assert funnel["kept"] == len(good) == len(kept)
    assert funnel["removed"] == dict.fromkeys(sorted(reason for _, reason in BAD), 1)
    assert funnel["redacted"] == {"email": 1}
    assert funnel["splits"] == {"train": len(train), "validation": len(validation), "heldout": 2}
    left = funnel["read"]
    for stage in funnel["stages"]:
        left -= sum(stage["removed"].values())
        assert stage["rows"] == left

    shutil.rmtree(Path(store.root.removeprefix("file://")) / outcome.manifest.name)
    again = run_job("curate", config, {"data": data, "heldout": held_out}, env={"PYTHONHASHSEED": "7"})
    assert again.manifest.content_digest == outcome.manifest.content_digest


def test_ninety_nine_copies_in_a_hundred_leave_one_each_and_go_on_to_the_checks(run_job, make_artifact):
    rows = [
        {"input": f"show pod number {copy % 20} of team blue", "output": f"kubectl get pod {copy % 20}"}
        for copy in range(2000)
    ]
    outcome = run_job("curate", {}, {"data": make_artifact("data", {"part-00000.jsonl": jsonl(rows)})})
    funnel = json.loads((outcome.folder / "funnel.json").read_text())
    assert funnel["removed"] == {"exact_duplicate": 1980}
    assert funnel["kept"] == 20
    assert all(funnel["splits"].values())


@pytest.mark.parametrize(("action", "kept", "shown"), [("drop", 0, "<EMAIL>"), ("keep", 1, "a@example.com")])
def test_personal_data_can_be_dropped_or_kept(tmp_path, action, kept, shown):
    from include.specs.curate import Config
    from jobs.curate.curation import curate
    from jobs.curate.output import write
    from jobs.curate.parsing import read_rows

    private = {"prompt": "write to a@example.com", "completion": "kubectl get node"}
    (tmp_path / "data.jsonl").write_bytes(jsonl([*GOOD, private, {"prompt": "a@example.com"}]))
    config = Config.model_validate({"pii": {"action": action}})
    curated = curate(
        read_rows(tmp_path, config.mapping, where="data set"), config, [], on_step=lambda step, **fields: None
    )
    output = tmp_path / "out"
    output.mkdir()
    funnel = write(curated, output, config)
    assert funnel["kept"] == len(GOOD) + kept
    assert funnel["removed"].get("pii", 0) == 1 - kept
    assert funnel["redacted"] == {}
    assert shown in json.dumps(read(output / "removed.jsonl")[-1])


def test_a_lone_surrogate_and_a_very_long_row_can_be_written(tmp_path):
    from include.specs.curate import Pii
    from jobs.curate.output import _write_lines, removed_record
    from jobs.curate.parsing import Line, RemovedRow

    rows = [{"prompt": "\ud800", "completion": 1}, {"prompt": "x" * 10_000_000}]
    records = [removed_record(RemovedRow(Line("a", 1, row), "wrong_type", "d"), Pii()) for row in rows]
    _write_lines(tmp_path / "removed.jsonl", records)
    first, second = read(tmp_path / "removed.jsonl")
    assert first["row"] == rows[0]
    assert len(second["row"]) < 2100
