"""Ingest: what it takes, and what it refuses with which sentence."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from include.errors import DataError
from include.sources.data_set import fingerprints
from jobs.ingest import snapshot
from tests.faults.scenario import scenario

GOOD = b'{"prompt": "show the pods", "completion": "kubectl get pods"}\n'
QUICK = {"settle_seconds": 0}
REFUSED = "ingest ends with 65 and says file, place and remedy; no snapshot exists"
ZSTD = b"\x28\xb5\x2f\xfd\x04\x00"


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


def file(when: str, data: bytes, *words: str) -> Any:
    return pytest.param(data, words, id=when, marks=scenario(given="one JSONL file", when=when, then=REFUSED))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        file("it is empty", b"", "the file is empty", "remove it"),
        file("it holds blank lines only", b"\n \r\n\n", "only blank lines"),
        file(
            "it is CSV",
            b"prompt,completion\na,b\n",
            "none of the first lines is a JSON object",
            "one JSON object a line",
        ),
        file("it is a JSON array", b'[{"prompt": "a"}]\n', "JSON array"),
        file("an object is spread over its lines", b'{\n "prompt": "a"\n}\n', "spread over several lines"),
        file("all its lines are lists, numbers and null", b"[1]\n2\nnull\n" * 9, "JSON array"),
        file("its last line is cut off", GOOD * 2 + b'{"prompt": "show', "line 3", "cut off"),
        file("it is cut off inside a character", GOOD + "파".encode()[:2], "line 2", "inside a UTF-8 character"),
        file("it is random bytes", bytes(range(128, 256)) * 50, "line 1", "not UTF-8"),
        file("its disk left NUL bytes in it", GOOD + b"\0" * 512, "line 2", "NUL at byte 62", "damaged"),
        file("it is Latin-1", GOOD + b'{"prompt": "caf\xe9"}\n', "line 2", "byte 0xe9 at 77", "convert the file"),
        file("it is UTF-16 with a BOM", GOOD.decode().encode("utf-16"), "UTF-16; convert it to UTF-8"),
        file("it is UTF-16 without a BOM", GOOD.decode().encode("utf-16-le"), "line 1", "NUL at byte 1"),
        file("a surrogate is encoded in it", GOOD + b'{"prompt": "\xed\xa0\x80"}\n', "line 2", "not UTF-8"),
        file("it is gzip", gzip.compress(GOOD), "gzip; unpack it first"),
        file("it is gzip, cut off", gzip.compress(GOOD)[:20], "gzip; unpack it first"),
        file("it is zstandard, and rubbish", ZSTD + b"rubbish", "zstandard; unpack it first"),
        file("it is bzip2", bz2.compress(GOOD), "bzip2; unpack it first"),
        file("it is xz", lzma.compress(GOOD), "xz; unpack it first"),
        file("it is Parquet", b"PAR1" + bytes(60) + b"PAR1", "Parquet; convert it"),
    ],
)
def test_a_file_that_is_no_json_lines(tmp_path, refused, data, words):
    (tmp_path / "bad.jsonl").write_bytes(data)
    message = refused("ingest", config(tmp_path / "bad.jsonl"))
    assert all(word in message for word in ["bad.jsonl", *words]), message


def _link_to_itself(folder: Path) -> None:
    (folder / "a.jsonl").symlink_to(folder / "a.jsonl")


def _link_to_nothing(folder: Path) -> None:
    (folder / "a.jsonl").symlink_to(folder / "gone" / "b.jsonl")


def _socket(folder: Path) -> None:
    home = Path.cwd()
    os.chdir(folder)  # a socket's path may have 107 characters
    try:
        socket.socket(socket.AF_UNIX).bind("a.jsonl")
    finally:
        os.chdir(home)


def _packed_beside(folder: Path) -> None:
    (folder / "a.jsonl").write_bytes(GOOD)
    (folder / "b.jsonl.zst").write_bytes(ZSTD)


def _one_empty(folder: Path) -> None:
    (folder / "a.jsonl").write_bytes(GOOD)
    (folder / "b.jsonl").touch()


def _name_that_is_not_text(folder: Path) -> None:
    (folder / os.fsdecode(b"\xff.jsonl")).write_bytes(GOOD)


def place(when: str, make: Callable[[Path], object], below: str, *words: str) -> Any:
    mark = scenario(given="a path given as the data set", when=when, then=REFUSED)
    return pytest.param(make, below, words, id=when, marks=mark)


@pytest.mark.parametrize(
    ("make", "below", "words"),
    [
        place("nothing is there", lambda folder: None, "a.jsonl", "there is no such file"),
        place("the folder holds no shard", lambda folder: None, "", "holds no *.jsonl file"),
        place("a file stands where a folder should", lambda f: (f / "a").touch(), "a/b.jsonl", "Not a directory"),
        place("its name is too long", lambda folder: None, "a" * 300, "File name too long"),
        place("one of its shards is empty", _one_empty, "", "b.jsonl: the file is empty"),
        place("one of its shards is packed", _packed_beside, "", "b.jsonl.zst: packed shards are not read"),
        place("a folder is named like a shard", lambda f: (f / "a.jsonl").mkdir(), "", "a.jsonl: not a regular file"),
        place("a link leads back to itself", _link_to_itself, "", "a.jsonl: a link that leads back to itself"),
        place("a link leads nowhere", _link_to_nothing, "", "a.jsonl: there is no such file"),
        place("it is a FIFO", lambda f: os.mkfifo(f / "a.jsonl"), "a.jsonl", "not a regular file"),
        place("it is a socket", _socket, "a.jsonl", "not a regular file"),
        place("it is a device", lambda f: (f / "a.jsonl").symlink_to("/dev/zero"), "a.jsonl", "not a regular file"),
        place("a shard's name is not UTF-8", _name_that_is_not_text, "", r"\xff.jsonl: the name is not UTF-8"),
    ],
)
def test_a_path_at_which_no_data_set_is(tmp_path, refused, make, below, words):
    folder = tmp_path / "data"
    folder.mkdir()
    make(folder)
    message = refused("ingest", config(folder / below if below else folder))
    assert all(word in message for word in words), message


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


@scenario(
    given="a folder with a link to a shard outside of it",
    when="it is the data set, and the shard is removed afterwards",
    then="the snapshot holds the shard's bytes, and no link",
)
def test_a_link_to_outside_is_taken_as_its_content(tmp_path, run_here):
    (tmp_path / "elsewhere.jsonl").write_bytes(GOOD)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.jsonl").symlink_to(tmp_path / "elsewhere.jsonl")
    taken = run_here("ingest", config(tmp_path / "data")) / "data.jsonl"
    (tmp_path / "elsewhere.jsonl").unlink()
    assert stat.S_ISREG(taken.lstat().st_mode)
    assert taken.read_bytes() == GOOD


MOVING = "ingest ends with 75: the next try takes what is there then; no snapshot exists"


def _grow(source: Path) -> None:
    with source.open("ab") as stream:
        stream.write(GOOD)


def _replace(source: Path) -> None:
    other = source.with_suffix(".new")
    other.write_bytes(GOOD * 3)
    other.replace(source)


def _damage_the_end(source: Path) -> None:
    with source.open("r+b") as stream:
        stream.seek(-100, os.SEEK_END)
        stream.write(b"\xff")


def _shorten(source: Path) -> None:
    os.truncate(source, source.stat().st_size // 2)


def _rewrite_and_set_back_its_time(source: Path) -> None:
    before = source.stat().st_mtime_ns
    with source.open("r+b") as stream:
        stream.write(GOOD.replace(b"show", b"list"))
    os.utime(source, ns=(before, before))


def moving(when: str, change: Callable[[Path], object]) -> Any:
    return pytest.param(change, id=when, marks=scenario(given="ingest reading a file", when=when, then=MOVING))


@pytest.mark.parametrize(
    "change",
    [
        moving("the file grows", _grow),
        moving("the file is replaced by another", _replace),
        moving("the file is cut short", _shorten),
        moving("its end is overwritten with rubbish", _damage_the_end),
        moving("it is removed", Path.unlink),
        moving("it is rewritten in place, with the old time set back", _rewrite_and_set_back_its_time),
    ],
)
def test_a_file_that_changes_while_it_is_read(tmp_path, monkeypatch, refused, change):
    source = tmp_path / "data.jsonl"
    source.write_bytes(GOOD * 20_000)
    chunks = snapshot._chunks

    def changed_after_the_first(path):
        for number, chunk in enumerate(chunks(path)):
            yield chunk
            if number == 0:
                change(source)

    monkeypatch.setattr(snapshot, "CHUNK_BYTES", 4096)
    monkeypatch.setattr(snapshot, "_chunks", changed_after_the_first)
    message = refused("ingest", config(source), expect=75)
    assert message.startswith("data.jsonl changed while it was read"), message


@scenario(given="a file that a writer adds to, row by row", when="it is ingested meanwhile", then=MOVING)
def test_a_file_that_is_still_being_written(tmp_path, refused):
    source = tmp_path / "data.jsonl"
    source.write_bytes(GOOD)
    writing = (
        "import sys, time\nwhile True: open(sys.argv[1], 'ab').write(bytes.fromhex(sys.argv[2])); time.sleep(0.05)"
    )
    writer = subprocess.Popen([sys.executable, "-c", writing, str(source), GOOD.hex()])
    try:
        while source.stat().st_size == len(GOOD):
            time.sleep(0.01)
        message = refused("ingest", config(source, settle_seconds=0.5), expect=75)
    finally:
        writer.kill()
        writer.wait()
    assert "still being written" in message


@scenario(given="a run planned with a file", when="the file is replaced before the job starts", then=MOVING)
def test_a_file_replaced_between_plan_and_start(tmp_path, refused):
    source = tmp_path / "data.jsonl"
    source.write_bytes(GOOD)
    planned = [found.model_dump() for found in fingerprints(str(source))]
    _replace(source)
    message = refused("ingest", config(source, files=planned), expect=75)
    assert message.startswith("data.jsonl changed after the run was planned")


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
