"""Ingest as a real process: what it takes, and what it refuses with which sentence."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from include.errors import DataError, TryAgainError
from include.sources.data_set import fingerprints
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


def test_a_folder_becomes_parts_in_the_order_of_its_names(tmp_path, run_job):
    for name, row in (("b.jsonl", b'{"n": 2}\n'), ("a.jsonl", b'{"n": 1}\n'), (".c.jsonl", b"half"), ("d.txt", b"?")):
        (tmp_path / "data").mkdir(exist_ok=True)
        (tmp_path / "data" / name).write_bytes(row)
    folder = run_job("ingest", config(tmp_path / "data")).folder
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        "part-00000.jsonl": b'{"n": 1}\n',
        "part-00001.jsonl": b'{"n": 2}\n',
    }


@pytest.mark.parametrize("boundary", range(1, 9))
def test_places_are_right_across_chunks(tmp_path, monkeypatch, boundary):
    monkeypatch.setattr(snapshot, "CHUNK_BYTES", boundary)
    source = tmp_path / "bad.jsonl"
    source.write_bytes('{"a": "한글"}\n'.encode() * 3 + b'{"a": "\xed\x95x"}\n')
    (file,) = fingerprints(str(source))
    with pytest.raises(DataError, match=r"line 4: not UTF-8 \(byte 0xed at 55\)"):
        snapshot.copy(file, tmp_path / "out", max_row_bytes=4096)


def test_a_relative_path_or_strange_scheme_is_bad_configuration(run_job):
    assert "absolute" in run_job("ingest", {"source": "data.jsonl"}, expect=64).error
    assert "ftp" in run_job("ingest", {"source": "ftp://host/data.jsonl"}, expect=64).error


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
