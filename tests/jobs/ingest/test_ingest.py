"""Ingest as a real process: what it takes, and what it refuses with which sentence."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from include.errors import DataError, TryAgainError
from include.sources import fingerprints
from jobs.ingest import snapshot

GOOD = b'{"prompt": "show the pods", "completion": "kubectl get pods"}\n'
QUICK = {"settle_seconds": 0}


def config(source: Path, **more: object) -> dict[str, object]:
    return {"source": str(source), **QUICK, **more}


def test_the_bytes_stay_as_they_were(tmp_path, run_job):
    source = tmp_path / "named [oddly].jsonl"
    data = b"\xef\xbb\xbf" + GOOD + b"\r\n" + '{"prompt": "파드", "completion": "x"}'.encode()
    source.write_bytes(data)
    outcome = run_job("ingest", config(source))
    assert (outcome.folder / "data.jsonl").read_bytes() == data
    assert outcome.manifest.metrics == {"rows": 2, "bytes": len(data), "files": 1}
    assert "byte_order_mark" in outcome.stdout


def test_the_same_bytes_under_another_name_are_the_same_data_set(tmp_path, run_job):
    one, other = tmp_path / "a.jsonl", tmp_path / "b" / "c.jsonl"
    other.parent.mkdir()
    one.write_bytes(GOOD)
    other.write_bytes(GOOD)
    assert run_job("ingest", config(one)).artifact.digest == run_job("ingest", config(other.parent)).artifact.digest


def test_a_folder_becomes_parts_in_the_order_of_its_names(tmp_path, run_job):
    for name, row in (("b.jsonl", b'{"n": 2}\n'), ("a.jsonl", b'{"n": 1}\n'), (".c.jsonl", b"half"), ("d.txt", b"?")):
        (tmp_path / "data").mkdir(exist_ok=True)
        (tmp_path / "data" / name).write_bytes(row)
    folder = run_job("ingest", config(tmp_path / "data")).folder
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        "part-00000.jsonl": b'{"n": 1}\n',
        "part-00001.jsonl": b'{"n": 2}\n',
    }


@pytest.mark.parametrize(
    ("data", "sentences"),
    [
        (b"", ["bad.jsonl: the file is empty"]),
        (b"\n \n", ["only blank lines"]),
        (GOOD * 2 + b'{"prompt": "show', ["line 3", "cut off"]),
        (b'{"prompt": "show', ["line 1", "cut off"]),
        (GOOD + "파".encode()[:2], ["line 2", "ends inside a UTF-8 character"]),
        (GOOD + b'{"prompt": "caf\xe9"}\n', ["line 2", "not UTF-8 (byte 0xe9 at 77)"]),
        (GOOD + b'{"prompt": "a\0b"}\n', ["line 2", "NUL at byte 75"]),
        (GOOD + b'{"prompt": "' + b"x" * 5000 + b'"}\n', ["line 2", "max_row_bytes (4096)"]),
        (b'[{"prompt": "a"}]\n', ["JSON array"]),
        (b'{\n "prompt": "a"\n}\n', ["spread over several lines"]),
        (b"prompt,completion\na,b\n", ["none of the first lines is a JSON object", "prompt,completion"]),
        (b"\x1f\x8b\x08\x00rest", ["gzip"]),
        ("\ufeff{}".encode("utf-16-le"), ["UTF-16"]),
    ],
)
def test_what_cannot_be_read_is_refused_with_place_and_remedy(tmp_path, run_job, data, sentences):
    source = tmp_path / "bad.jsonl"
    source.write_bytes(data)
    outcome = run_job("ingest", config(source, max_row_bytes=4096), expect=65)
    assert all(sentence in outcome.error for sentence in ["bad.jsonl", *sentences])
    assert outcome.manifest is None


@pytest.mark.parametrize("boundary", range(1, 9))
def test_places_are_right_across_chunks(tmp_path, monkeypatch, boundary):
    monkeypatch.setattr(snapshot, "CHUNK_BYTES", boundary)
    source = tmp_path / "bad.jsonl"
    source.write_bytes('{"a": "한글"}\n'.encode() * 3 + b'{"a": "\xed\x95x"}\n')
    (file,) = fingerprints(str(source))
    with pytest.raises(DataError, match=r"line 4: not UTF-8 \(byte 0xed at 55\)"):
        snapshot.copy(file, tmp_path / "out", max_row_bytes=4096)


@pytest.mark.parametrize(
    ("name", "sentence"), [("missing.jsonl", "there is no such file"), (".", "holds no *.jsonl"), ("pipe", "regular")]
)
def test_what_is_not_there_is_unreadable_data(tmp_path, run_job, name, sentence):
    os.mkfifo(tmp_path / "pipe")
    outcome = run_job("ingest", config(tmp_path / name), expect=65)
    assert sentence in outcome.error
    assert outcome.manifest is None


def test_a_relative_path_or_strange_scheme_is_bad_configuration(run_job):
    assert "absolute" in run_job("ingest", {"source": "data.jsonl"}, expect=64).error
    assert "ftp" in run_job("ingest", {"source": "ftp://host/data.jsonl"}, expect=64).error


def test_a_fifty_megabyte_row_is_refused_in_little_memory(tmp_path, write_spec):
    source = tmp_path / "huge.jsonl"
    with source.open("wb") as stream:
        stream.write(GOOD + b'{"prompt": "')
        for _ in range(50):
            stream.write(b"x" * 1_000_000)
        stream.write(b'"}\n')
    uri, _ = write_spec("ingest", config(source))
    program = (
        "import resource, subprocess, sys;"
        f"done = subprocess.run([sys.executable, '-m', 'jobs.ingest', '--spec', {uri!r}]);"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss);"
        "sys.exit(done.returncode)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 65
    assert "line 2: longer than max_row_bytes (10000000)" in done.stderr
    assert int(done.stdout.split()[-1]) < 150_000


def test_a_source_other_than_planned_is_not_taken(tmp_path, run_job):
    source = tmp_path / "data.jsonl"
    source.write_bytes(GOOD)
    planned = [file.model_dump() for file in fingerprints(str(source))]
    source.write_bytes(GOOD + GOOD)
    outcome = run_job("ingest", config(source, files=planned), expect=75)
    assert f"{source} changed after the run was planned" in outcome.error
    assert outcome.manifest is None


def test_a_file_that_still_grows_is_not_taken(tmp_path, run_job):
    source = tmp_path / "data.jsonl"
    source.write_bytes(GOOD)
    done = threading.Event()

    def grow() -> None:
        while not done.is_set():
            with source.open("ab") as stream:
                stream.write(GOOD)
            time.sleep(0.05)

    writer = threading.Thread(target=grow)
    writer.start()
    try:
        outcome = run_job("ingest", {"source": str(source), "settle_seconds": 0.5}, expect=75)
    finally:
        done.set()
        writer.join()
    assert "still being written" in outcome.error
    assert outcome.manifest is None


def test_a_file_replaced_while_it_is_read_is_not_taken(tmp_path, monkeypatch):
    """The same size and, by `touch`, the same time: inode and ctime still tell."""
    source = tmp_path / "data.jsonl"
    source.write_bytes(GOOD)
    before = fingerprints(str(source))
    snapshot.copy(before[0], tmp_path / "out", max_row_bytes=4096)
    times = source.stat().st_mtime_ns
    source.write_bytes(GOOD.replace(b"show", b"list"))
    os.utime(source, ns=(times, times))
    with pytest.raises(TryAgainError, match=r"data.jsonl changed while it was read"):
        snapshot.refuse_changed(str(source), before, when="while it was read")


def test_bytes_that_appear_during_the_copy_are_noticed(tmp_path):
    source = tmp_path / "data.jsonl"
    source.write_bytes(GOOD)
    (before,) = fingerprints(str(source))
    source.write_bytes(GOOD * 3)
    with pytest.raises(TryAgainError, match="while it was read"):
        snapshot.copy(before, tmp_path / "out", max_row_bytes=4096)


def test_other_content_than_was_announced_is_refused(tmp_path, run_job):
    path = tmp_path / "data.jsonl"
    path.write_text('{"prompt": "a", "completion": "b"}\n')
    announced = run_job("ingest", {"source": str(path)}).manifest.content_digest
    assert run_job("ingest", {"source": str(path), "announced": announced}).manifest.content_digest == announced
    path.write_text('{"prompt": "a", "completion": "c"}\n')
    files = [file.model_dump() for file in fingerprints(str(path))]
    outcome = run_job("ingest", {"source": str(path), "announced": announced, "files": files}, expect=65)
    assert f"holds other content than was announced (announced {announced[:12]}" in outcome.error
    assert outcome.manifest is None
