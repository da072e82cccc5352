"""The generator as a job and as a command."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path


def write(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "jobs.demo.generate.write", *arguments], capture_output=True, text=True, timeout=60
    )


def test_the_job_commits_what_the_command_writes(run_job, tmp_path: Path):
    outcome = run_job("generate", {"variant": "train", "rows": 120, "seed": 5})
    target = tmp_path / "inbox" / "data.jsonl"
    done = write("train", "--rows", "120", "--seed", "5", "--out", str(target))
    assert done.returncode == 0, done.stderr
    assert target.read_bytes() == (outcome.folder / "data.jsonl").read_bytes()
    assert outcome.manifest.metrics["lines"] == 120
    assert [path.name for path in target.parent.iterdir()] == ["data.jsonl"]


def test_a_job_with_an_unknown_intent_is_bad_configuration(run_job):
    outcome = run_job("generate", {"variant": "train", "rows": 5, "intents": ["fly"]}, expect=64)
    assert "there is no 'fly'" in outcome.error


def test_a_failed_write_leaves_an_earlier_file_alone(tmp_path: Path):
    target = tmp_path / "data.jsonl"
    target.write_text("kept\n")
    done = write("heldout", "--rows", "0", "--out", str(target))
    assert done.returncode == 64
    assert done.stderr.startswith("error: --rows: ")
    assert target.read_text() == "kept\n"


def test_the_intents_asked_for_are_the_intents_written(tmp_path: Path):
    target = tmp_path / "data.jsonl"
    done = write("train", "--rows", "40", "--intents", "pause", "history", "--out", str(target))
    assert done.returncode == 0, done.stderr
    assert {json.loads(line)["intent"] for line in target.read_text().splitlines()} == {"pause", "history"}
