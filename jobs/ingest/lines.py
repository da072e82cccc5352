"""Check that a stream of bytes is JSON lines, in no more memory than the limit of one line."""

from __future__ import annotations

import codecs
import json

from include.errors import DataError

PROBED_LINES = 20
"""If none of this many first lines is a JSON object, the file is something else."""

_SIGNATURES = {
    b"\x1f\x8b": "gzip; unpack it first",
    b"PK\x03\x04": "a zip archive; unpack it first",
    b"\x28\xb5\x2f\xfd": "zstandard; unpack it first",
    b"BZh": "bzip2; unpack it first",
    b"\xfd7zXZ": "xz; unpack it first",
    b"PAR1": "Parquet; convert it to JSON lines",
    b"\xff\xfe": "UTF-16; convert it to UTF-8",
    b"\xfe\xff": "UTF-16; convert it to UTF-8",
}


class LineChecker:
    """Takes a file chunk by chunk, and raises at the first problem that no later stage could handle.

    Single bad rows (broken JSON among good lines, a missing column) pass: curation removes them one by one, with the
    reason.

    Attributes:
        rows: lines seen so far that are not blank.
        byte_order_mark: whether the file starts with a UTF-8 BOM.
    """

    def __init__(self, path: str, *, max_row_bytes: int) -> None:
        self.rows = 0
        self.byte_order_mark = False
        self._path = path
        self._max_row_bytes = max_row_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._line = bytearray()
        self._number = 1
        self._offset = 0
        self._probed = 0
        self._objects = 0
        self._first_line = b""

    def feed(self, chunk: bytes) -> None:
        """Check the next bytes.

        Raises:
            DataError: names file, line and byte offset.
        """
        if self._offset == 0:
            for signature, advice in _SIGNATURES.items():
                if chunk.startswith(signature):
                    raise DataError(f"{self._path}: not JSON lines but {advice}")
            self.byte_order_mark = chunk.startswith(codecs.BOM_UTF8)
        self._check_text(chunk)
        *complete, rest = chunk.split(b"\n")
        for piece in complete:
            self._extend(piece)
            self._end_line()
        self._extend(rest)
        self._offset += len(chunk)

    def finish(self) -> None:
        """Check what only the end of the file shows.

        Raises:
            DataError: the file was cut off, or holds no JSON object.
        """
        try:
            self._decoder.decode(b"", final=True)
        except UnicodeDecodeError:
            raise DataError(
                f"{self._path}, line {self._number}: the file ends inside a UTF-8 character (byte {self._offset}); "
                "it was cut off: write it again"
            ) from None
        last = bytes(self._line).strip()
        truncated = bool(last) and not _is_json(last)
        if last:
            self._end_line()
        if not self.rows:
            raise DataError(f"{self._path}: the file holds only blank lines; write the rows into it, or remove it")
        if truncated and (self._objects or last.startswith(b"{")):
            raise DataError(
                f"{self._path}, line {self._number - 1}: the last line has no end of line and is not complete JSON, "
                "so the file was cut off; write it again, or remove the line"
            )
        if not self._objects:
            raise DataError(f"{self._path}: {_describe(self._first_line)}; write one JSON object a line")

    def _check_text(self, chunk: bytes) -> None:
        if (nul := chunk.find(b"\0")) >= 0:
            line = self._number + chunk.count(b"\n", 0, nul)
            raise DataError(
                f"{self._path}, line {line}: a NUL at byte {self._offset + nul}; text holds none, so the file is "
                "damaged or binary: write it again as UTF-8 JSON lines"
            )
        pending = len(self._decoder.getstate()[0])
        try:
            self._decoder.decode(chunk)
        except UnicodeDecodeError as error:
            position = error.start - pending
            line = self._number + chunk.count(b"\n", 0, max(position, 0))
            raise DataError(
                f"{self._path}, line {line}: not UTF-8 (byte 0x{error.object[error.start]:02x} "
                f"at {self._offset + position}); convert the file to UTF-8"
            ) from None

    def _extend(self, piece: bytes) -> None:
        if len(self._line) + len(piece) > self._max_row_bytes:
            raise DataError(
                f"{self._path}, line {self._number}: longer than ingest.max_row_bytes ({self._max_row_bytes}); "
                "remove or split the row, or raise ingest.max_row_bytes"
            )
        self._line += piece

    def _end_line(self) -> None:
        if line := self._line.strip():
            self.rows += 1
            if not self._objects and self._probed < PROBED_LINES:
                self._probe(bytes(line))
        self._number += 1
        self._line.clear()

    def _probe(self, line: bytes) -> None:
        line = line.removeprefix(codecs.BOM_UTF8)
        self._first_line = self._first_line or line
        self._probed += 1
        self._objects += _is_json(line, dict)
        if self._probed == PROBED_LINES and not self._objects:
            raise DataError(f"{self._path}: {_describe(self._first_line)}; write one JSON object a line")


def _is_json(line: bytes, kind: type = object) -> bool:
    try:
        return isinstance(json.loads(line.removeprefix(codecs.BOM_UTF8)), kind)
    except json.JSONDecodeError:
        return False
    except (ValueError, RecursionError):
        # A number of thousands of digits, or thousands of brackets: curation will remove it, but it was not cut off.
        return kind is object


def _describe(first_line: bytes) -> str:
    if first_line.startswith(b"["):
        return "the file starts with a JSON array, not with JSON lines"
    if first_line in (b"{", b"{}"):
        return "the file starts with an object spread over several lines"
    # The line is not quoted: whoever names a file in a form need not be allowed to read it.
    return "none of the first lines is a JSON object"
