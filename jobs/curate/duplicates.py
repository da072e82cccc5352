"""Exact and near duplicates, and overlap with the held-out set, as NeMo Curator stages on polars and rensa.

Curator's own de-duplication needs cuDF. These stages add a column that names the row (its `place`) which a row
repeats, and remove nothing: a `Filter` stage after them does.

MinHash with banding: Broder 1997; Leskovec, Rajaraman, Ullman, Mining of Massive Datasets, chapter 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import polars as pl
import rensa
from nemo_curator.stages.base import ProcessingStage
from nemo_curator.tasks import DocumentBatch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from include.specs.curate import NearDuplicates
from jobs.common.conversations import EDGES, comparison_key

_TEXTS_AT_ONCE = 8192
"""Texts whose shingles are in memory together."""

_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
"""Odd, so that it loses nothing modulo 2^64: the golden ratio's fraction (Knuth, The Art of Computer Programming 3)."""


@dataclass
class MarkExactDuplicates(ProcessingStage[DocumentBatch, DocumentBatch]):
    """Adds `exact_duplicate_of`: the place of the first row with the same `id`."""

    name: str = "mark_exact_duplicates"

    def inputs(self) -> tuple[list[str], list[str]]:
        return ["data"], ["id", "place"]

    def outputs(self) -> tuple[list[str], list[str]]:
        return ["data"], ["exact_duplicate_of"]

    def process(self, batch: DocumentBatch) -> DocumentBatch:
        frame = batch.to_pandas()
        rows = pl.DataFrame({"id": frame["id"].tolist()}).with_row_index("row")
        first = rows.select(pl.col("row").first().over("id"))["row"].to_numpy()
        return _marked(batch, "exact_duplicate_of", first)


@dataclass
class MarkNearDuplicates(ProcessingStage[DocumentBatch, DocumentBatch]):
    """Adds `near_duplicate_of`: the place of the first row of the group of similar rows that a row belongs to."""

    settings: NearDuplicates
    seed: int
    name: str = "mark_near_duplicates"

    def inputs(self) -> tuple[list[str], list[str]]:
        return ["data"], ["text", "answer", "place"]

    def outputs(self) -> tuple[list[str], list[str]]:
        return ["data"], ["near_duplicate_of"]

    def process(self, batch: DocumentBatch) -> DocumentBatch:
        frame = batch.to_pandas()
        pairs = similar_pairs(frame["text"].tolist(), frame["answer"].tolist(), self.settings, self.seed)
        return _marked(batch, "near_duplicate_of", first_of_group(pairs, len(frame)))


@dataclass
class MarkHeldOut(ProcessingStage[DocumentBatch, DocumentBatch]):
    """Adds `held_out_as`: the id of a held-out row with the same request, or near-duplicate of the whole row.

    Attributes:
        held_out: columns id, request, text, answer.
        settings: None marks rows with the same request only.
    """

    held_out: Sequence[dict[str, str]]
    settings: NearDuplicates | None
    seed: int
    name: str = "mark_held_out"

    def inputs(self) -> tuple[list[str], list[str]]:
        return ["data"], ["request", "text", "answer"]

    def outputs(self) -> tuple[list[str], list[str]]:
        return ["data"], ["held_out_as"]

    def process(self, batch: DocumentBatch) -> DocumentBatch:
        frame = batch.to_pandas()
        by_request = {comparison_key(row["request"]): row["id"] for row in self.held_out}
        found = [by_request.get(comparison_key(request)) for request in frame["request"]]
        if self.settings is not None:
            count = len(self.held_out)
            texts, answers = (
                [*(row[column] for row in self.held_out), *frame[column]] for column in ("text", "answer")
            )
            for a, b in similar_pairs(texts, answers, self.settings, self.seed):
                if a < count <= b and found[b - count] is None:
                    found[b - count] = self.held_out[a]["id"]
        frame["held_out_as"] = found
        return DocumentBatch(dataset_name=batch.dataset_name, data=frame, _metadata=batch._metadata)


def signatures(texts: Sequence[str], shingle_words: int, permutations: int, seed: int) -> np.ndarray:
    """Return MinHash signatures, uint32 [len(texts), permutations]; a text shorter than a shingle is one shingle."""
    found = np.empty((len(texts), permutations), dtype=np.uint32)
    for start in range(0, len(texts), _TEXTS_AT_ONCE):
        some = texts[start : start + _TEXTS_AT_ONCE]
        hashes, offsets = _shingles(some, shingle_words, seed)
        matrix = rensa.RMinHash.digest_matrix_from_flat_token_hashes(hashes, offsets, permutations, seed)
        flat = np.fromiter(chain.from_iterable(matrix.to_rows()), np.uint32, len(some) * permutations)
        found[start : start + len(some)] = flat.reshape(-1, permutations)
    return found


def _shingles(texts: Sequence[str], size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the hashes of all texts' shingles end to end, and the offsets of each text's first and the end, uint64."""
    folded = pl.DataFrame({"text": range(len(texts)), "word": [text.casefold() for text in texts]})
    # Without case and the punctuation around words.
    bare = pl.col("word").str.strip_chars(EDGES)
    flat = folded.with_columns(pl.col("word").str.extract_all(r"\S+")).explode("word").select("text", bare)
    flat = flat.filter(pl.col("word") != "")
    wordless = folded.join(flat, on="text", how="anti")
    if len(wordless):
        flat = pl.concat([flat, wordless]).sort("text", maintain_order=True)
    each = flat["word"].hash(seed).to_numpy()
    counts = np.bincount(flat["text"].to_numpy(), minlength=len(texts))
    # A text of fewer words than a shingle is filled up with zeros.
    lengths = np.maximum(counts, size)
    starts = np.cumsum(lengths) - lengths
    words = np.zeros(lengths.sum(), dtype=np.uint64)
    words[np.repeat(starts - (np.cumsum(counts) - counts), counts) + np.arange(len(each))] = each
    shingles = lengths - size + 1
    ends = np.cumsum(shingles)
    first = np.repeat(starts - (ends - shingles), shingles) + np.arange(ends[-1])
    hashes = np.zeros(len(first), dtype=np.uint64)
    for place in range(size):
        # A polynomial of the words' hashes: other words, or the same in another order, give another number.
        hashes = hashes * _MULTIPLIER + words[first + place]
    return hashes, np.concatenate([[0], ends]).astype(np.uint64)


def similar_pairs(
    texts: Sequence[str], answers: Sequence[str], settings: NearDuplicates, seed: int
) -> list[tuple[int, int]]:
    """Return the pairs (a, b), a < b, of rows whose texts and whose answers are estimated to be similar enough.

    Within a bucket each row is compared with the bucket's first row and with the one before it, not with all of them:
    the work stays linear where one row has thousands of copies, and groups are still connected.
    """
    if len(texts) < 2:
        return []
    permutations = settings.bands * settings.rows_per_band
    of_text = signatures(texts, settings.shingle_words, permutations, seed)
    candidates: set[tuple[int, int]] = set()
    for band in np.split(of_text, settings.bands, axis=1):
        names = [f"hash{place}" for place in range(settings.rows_per_band)]
        rows = pl.DataFrame(band, schema=names).with_row_index("row")
        buckets = rows.select(
            "row",
            first=pl.col("row").first().over(names),
            previous=pl.col("row").shift(1).over(names),
        ).filter(pl.col("previous").is_not_null())
        for other in ("first", "previous"):
            candidates.update(buckets.select(other, "row").iter_rows())
    if not candidates:
        return []
    a, b = np.array(sorted(candidates), dtype=np.int64).T
    similar = (of_text[a] == of_text[b]).mean(axis=1) >= settings.similarity
    a, b = a[similar], b[similar]
    rows, place = np.unique(np.concatenate([a, b]), return_inverse=True)
    of_answer = signatures([answers[row] for row in rows], settings.shingle_words, permutations, seed)
    similar = (of_answer[place[: len(a)]] == of_answer[place[len(a) :]]).mean(axis=1) >= settings.similarity
    return list(zip(a[similar].tolist(), b[similar].tolist(), strict=True))


def first_of_group(pairs: Sequence[tuple[int, int]], count: int) -> np.ndarray:
    """Return the first row of the connected component of each of `count` rows, int64 [count]."""
    if not pairs:
        return np.arange(count)
    a, b = np.array(pairs).T
    graph = coo_array((np.ones(len(a), dtype=np.int8), (a, b)), shape=(count, count))
    _, component = connected_components(graph, directed=False)
    _, first = np.unique(component, return_index=True)
    return first[component]


def _marked(batch: DocumentBatch, column: str, first: np.ndarray) -> DocumentBatch:
    frame = batch.to_pandas()
    places = frame["place"].tolist()
    frame[column] = [None if original == row else places[original] for row, original in enumerate(first)]
    return DocumentBatch(dataset_name=batch.dataset_name, data=frame, _metadata=batch._metadata)
