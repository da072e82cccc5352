"""The rows as tokens: encoded once with the shared chat template, then read by all ranks from one memory map."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from include.errors import DataError
from jobs.common.chat import encode

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORE = -100
"""The label of a token that is not trained on (torch's cross entropy ignores it)."""

BLANK = -1
"""The index of a row of one token that is not trained on."""

_NAMES = "ids.json"


class Count(NamedTuple):
    """Rows of a file, and the tokens in all of them and in the longest."""

    rows: int
    tokens: int
    longest: int


def encode_file(path: Path, tokenizer: PreTrainedTokenizerBase, max_tokens: int, folder: Path) -> Count:
    """Encode every row of a JSONL file of {"id", "messages"} into `folder`.

    The files are `ids.npy` (int32, all rows end to end), `mask.npy` (int8, 1 where trained on), `ends.npy` (int64,
    where each row ends), `pad.npy` (the padding token's id) and `ids.json` (the rows' ids).

    Raises:
        DataError: no rows; or a row that is malformed, that the template cannot render, that is longer than
            `max_tokens`, or in which nothing is trained on. The message names the row.
    """
    ids: list[np.ndarray] = []
    masks: list[np.ndarray] = []
    names: list[str] = []
    with path.open(encoding="utf-8") as stream:
        for number, line in enumerate(stream, start=1):
            try:
                row = json.loads(line)
                where = f"{path.name}, row {number} (id {row['id']})"
                messages = row["messages"]
                tokens, mask = encode(tokenizer, messages)
            except DataError as error:
                raise DataError(f"{where}: {error}") from None
            except (ValueError, KeyError, TypeError) as error:
                raise DataError(
                    f"{path.name}, row {number} is not a row of a curated data set ({type(error).__name__}: {error}): "
                    "correct the row, or take it out of the data set"
                ) from None
            if len(tokens) > max_tokens:
                raise DataError(
                    f"{where} has {len(tokens)} tokens, finetune.max_tokens is {max_tokens}: "
                    "raise finetune.max_tokens, or take the row out of the data set"
                )
            if not any(mask):
                raise DataError(f"{where} has no token to train on: give it an assistant message with text")
            ids.append(np.asarray(tokens, dtype=np.int32))
            masks.append(np.asarray(mask, dtype=np.int8))
            names.append(str(row["id"]))
    if not ids:
        raise DataError(f"{path.name} has no rows: look at what curation removed, and why")
    lengths = np.asarray([len(row) for row in ids], dtype=np.int64)
    folder.mkdir(parents=True)
    np.save(folder / "ids.npy", np.concatenate(ids))
    np.save(folder / "mask.npy", np.concatenate(masks))
    np.save(folder / "ends.npy", np.cumsum(lengths))
    pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    np.save(folder / "pad.npy", np.asarray(pad))
    (folder / _NAMES).write_text(json.dumps(names), encoding="utf-8")
    return Count(len(ids), int(lengths.sum()), int(lengths.max()))


def row_names(folder: Path, rows: Iterable[int]) -> list[str]:
    """Return the ids of the rows with these indices, as in the data set that `encode_file` read."""
    names = json.loads((folder / _NAMES).read_text(encoding="utf-8"))
    return [names[row] for row in rows]


class EncodedRows:
    """A map-style dataset over what `encode_file` wrote, in the form that AutoModel's collater takes.

    Row i is {"input_ids", "labels", "attention_mask"}: int lists of the row's length less one. Labels are shifted
    by one (labels[t] is the token after input_ids[t]), `IGNORE` where nothing is trained on. Row `BLANK` is one token
    of padding, which counts for nothing.
    """

    def __init__(self, folder: str) -> None:
        source = Path(folder)
        self._ids = np.load(source / "ids.npy", mmap_mode="r")
        self._mask = np.load(source / "mask.npy", mmap_mode="r")
        self._ends = np.load(source / "ends.npy")
        self._pad = int(np.load(source / "pad.npy"))

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> dict[str, object]:
        if index == BLANK:
            return self._item([self._pad], [IGNORE])
        start, end = (int(self._ends[index - 1]) if index else 0), int(self._ends[index])
        ids, mask = self._ids[start:end], self._mask[start:end]
        return self._item(ids[:-1].tolist(), np.where(mask[1:] == 1, ids[1:], IGNORE).tolist())

    def _item(self, ids: list[int], labels: list[int]) -> dict[str, object]:
        return {
            "input_ids": ids,
            "labels": labels,
            "attention_mask": [1] * len(ids),
            "___PAD_TOKEN_IDS___": {"input_ids": self._pad, "labels": IGNORE, "attention_mask": 0},
        }
