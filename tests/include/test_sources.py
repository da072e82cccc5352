"""A fingerprint changes whenever the file does, and is taken without reading it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from include.artifacts.s3 import Access, Bucket
from include.errors import ConfigurationError, DataError
from include.sources.data_set import fingerprints


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "data.jsonl"
    path.write_bytes(b'{"n": 1}\n')
    return path


def test_an_untouched_file_keeps_its_fingerprint(source):
    assert fingerprints(str(source)) == fingerprints(f"file://{source}")


def test_growth_rewriting_in_place_and_replacement_are_seen(source):
    seen = {fingerprints(str(source))}
    times = source.stat().st_mtime_ns
    with source.open("ab") as stream:
        stream.write(b'{"n": 2}\n')
    seen.add(fingerprints(str(source)))
    source.write_bytes(b'{"n": 3}\n{"n": 4}\n')
    os.utime(source, ns=(times, times))
    seen.add(fingerprints(str(source)))
    other = source.with_name("other")
    other.write_bytes(source.read_bytes())
    os.utime(other, ns=(times, times))
    other.replace(source)
    seen.add(fingerprints(str(source)))
    assert len(seen) == 4


def test_a_folder_is_its_shards_in_order_without_unfinished_ones(source):
    for name in ("b.jsonl", ".c.jsonl", "a.jsonl", "notes.txt"):
        (source.parent / name).touch()
    found = [Path(file.path).name for file in fingerprints(str(source.parent))]
    assert found == ["a.jsonl", "b.jsonl", "data.jsonl"]


@pytest.mark.parametrize("uri", ["data.jsonl", "http://host/data.jsonl", "hdfs://host/data.jsonl", "/a\0b.jsonl"])
def test_sources_that_mean_nothing_to_another_process_are_refused(uri):
    with pytest.raises(ConfigurationError):
        fingerprints(uri)


def test_objects_have_fingerprints_like_files(s3_bucket):
    bucket = Bucket(f"s3://{s3_bucket}", Access())
    for key in ("inbox/b.jsonl", "inbox/a.jsonl", "inbox/.c.jsonl", "inbox/deep/d.jsonl", "inbox/notes.txt"):
        bucket.put(key, b"{}\n")
    found = fingerprints(f"s3://{s3_bucket}/inbox/")
    assert [(file.path, file.size) for file in found] == [
        (f"s3://{s3_bucket}/inbox/{name}.jsonl", 3) for name in ("a", "b")
    ]
    assert fingerprints(f"s3://{s3_bucket}/inbox/a.jsonl") == found[:1]
    bucket.put("inbox/a.jsonl", b"[]\n")
    assert fingerprints(f"s3://{s3_bucket}/inbox/a.jsonl") != found[:1]


@pytest.mark.parametrize(
    ("address", "error", "message"),
    [
        ("s3://{bucket}/gone", DataError, r"there is no such object, and no \*\.jsonl below it"),
        ("s3://{bucket}", DataError, "there is no such object"),
        ("s3://{bucket}/packed", DataError, r"b\.jsonl\.gz: packed shards are not read"),
        ("s3://of-nobody/data.jsonl", ConfigurationError, "there is no bucket 'of-nobody'"),
        ("s3://", ConfigurationError, "names no bucket"),
    ],
)
def test_what_is_not_a_data_set_on_s3_is_refused_with_the_reason(s3_bucket, address, error, message):
    bucket = Bucket(f"s3://{s3_bucket}", Access())
    for key in ("packed/a.jsonl", "packed/b.jsonl.gz"):
        bucket.put(key, b"")
    with pytest.raises(error, match=message):
        fingerprints(address.format(bucket=s3_bucket))
