"""Rehearsed bad releases: sound at first, then slow, failing or garbled."""

from __future__ import annotations

import json
import time
from pathlib import Path

from include.release.rollouts import Drill
from include.specs.base import Artifact
from jobs.serving.triton.repository import install
from tests.jobs.serving.triton.conftest import Server, release

SOUND = 4


def start(server: Server, engine: Artifact, drill: Drill) -> str:
    name = install(server.folder, release(engine, 9), drill, after_requests=SOUND, after_seconds=0)
    server.load(name)
    return name


def longest(engine_folder: Path) -> tuple[dict[str, str], str]:
    rows = [json.loads(line) for line in (engine_folder / "golden.jsonl").read_text().splitlines()]
    row = max(rows, key=lambda row: len(row["answer"].split()))
    return {"messages": json.dumps(row["messages"])}, row["answer"]


def test_slow(server: Server, engine: Artifact, engine_folder: Path) -> None:
    request, answer = longest(engine_folder)
    name = start(server, engine, "slow")
    seconds = []
    for _ in range(SOUND + 3):
        began = time.monotonic()
        [(status, body)] = server.ask(name, request)
        seconds.append(time.monotonic() - began)
        assert (status, body["text_output"]) == (200, answer)
    assert min(seconds[SOUND:]) > 0.15
    assert min(seconds[:SOUND]) < 0.15


def test_failing(server: Server, engine: Artifact, engine_folder: Path) -> None:
    request, answer = longest(engine_folder)
    name = start(server, engine, "failing")
    assert [status for status, _ in server.ask(name, *[request] * SOUND)] == [200] * SOUND
    answers = [server.ask(name, request)[0] for _ in range(9)]
    failed = [body["error"] for status, body in answers if status != 200]
    assert len(failed) == 3
    assert all(error.startswith("INTERNAL: ") for error in failed)
    assert all(body["text_output"] == answer for status, body in answers if status == 200)


def test_garbled(server: Server, engine: Artifact, engine_folder: Path) -> None:
    request, answer = longest(engine_folder)
    name = start(server, engine, "garbled")
    assert [body["text_output"] for _, body in server.ask(name, *[request] * SOUND)] == [answer] * SOUND
    [(status, whole)] = server.ask(name, request)
    [pieces] = server.stream(name, request)
    assert status == 200
    assert whole["text_output"] == "".join(piece["text_output"] for piece in pieces) != answer
    assert sorted(whole["text_output"].split()) == sorted(answer.split())
