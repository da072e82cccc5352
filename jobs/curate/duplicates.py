"""Exact and near duplicates, and overlap with the held-out set, as NeMo Curator stages on polars and rensa.

Curator's own de-duplication needs cuDF. These stages add a column that names the row (its `place`) which a row
repeats, and remove nothing: a `Filter` stage after them does.

MinHash with banding: Broder 1997; Leskovec, Rajaraman, Ullman, Mining of Massive Datasets, chapter 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
import rensa
from nemo_curator.stages.base import ProcessingStage
from nemo_curator.tasks import DocumentBatch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from include.specs.curate import NearDuplicates
from jobs.curate.text import comparable, words


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
        settings: None looks for the same request only.
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
        by_request = {comparable(row["request"]): row["id"] for row in self.held_out}
        found = [by_request.get(comparable(request)) for request in frame["request"]]
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
    """MinHash signatures, int64 of shape (len(texts), permutations); a text shorter than a shingle is one shingle."""
    shingles: list[str] = []
    offsets = [0]
    for text in texts:
        bare = words(text) or [text]
        last = max(len(bare) - shingle_words, 0)
        shingles.extend(" ".join(bare[start : start + shingle_words]) for start in range(last + 1))
        offsets.append(len(shingles))
    hashes = pl.Series(shingles, dtype=pl.String).hash(seed).to_numpy()
    matrix = rensa.RMinHash.digest_matrix_from_flat_token_hashes(
        hashes, np.array(offsets, dtype=np.uint64), permutations, seed
    )
    return np.asarray(matrix.to_rows(), dtype=np.int64).reshape(len(texts), permutations)


def similar_pairs(
    texts: Sequence[str], answers: Sequence[str], settings: NearDuplicates, seed: int
) -> list[tuple[int, int]]:
    """Pairs (a, b), a < b, of rows whose texts and whose answers are estimated to be similar enough.

    Within a bucket each row is compared with the bucket's first row and with the one before it, not with all: the
    work stays linear where one row has thousands of copies, and groups are joined through the others.
    """
    if len(texts) < 2:
        return []
    permutations = settings.bands * settings.rows_per_band
    of_text = signatures(texts, settings.shingle_words, permutations, seed)
    of_answer = signatures(answers, settings.shingle_words, permutations, seed)
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
    similar = np.ones(len(a), dtype=bool)
    for matrix in (of_text, of_answer):
        similar &= (matrix[a] == matrix[b]).mean(axis=1) >= settings.similarity
    return list(zip(a[similar].tolist(), b[similar].tolist(), strict=True))


def first_of_group(pairs: Sequence[tuple[int, int]], count: int) -> np.ndarray:
    """For each of `count` rows the first row of its connected component, int64 of shape (count,)."""
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
