"""The record that a server leaves behind."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from jobs.serving.triton.leftovers import RECORD, clear_leftovers, write_record


@pytest.mark.parametrize(
    "left", [b"", b"{", b"\0" * 80, b"\xff", b"[]", b"null", b"{}", b'{"pid": 1, "started": null}']
)
def test_a_record_that_cannot_be_read_is_none(tmp_path: Path, left: bytes) -> None:
    """A power loss can leave a file without its bytes."""
    (tmp_path / RECORD).write_bytes(left)
    assert clear_leftovers(tmp_path) == []
    prefix = write_record(tmp_path)
    assert json.loads((tmp_path / RECORD).read_text())["pid"] == os.getpid()
    assert prefix.endswith(f"-{os.getpid()}-")
